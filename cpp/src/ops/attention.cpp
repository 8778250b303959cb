#include "chipmunk_kernels/attention.h"

#include <cmath>
#include <string>

#include "cpu/attention.h"
#include "cuda/attention.h"
#include "ops/check.h"
#include "ops/column_lists.h"
#include "ops/cuda_limits.h"
#include "ops/dispatch.h"

namespace chipmunk {
namespace {

constexpr int64_t kMaxHeadDim = 256;

void check_floating(const ArgChecker& check, std::string_view argument, const TensorView& t) {
  check.dtype(argument, t, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
}

// A tensor that goes with `like`: its dtype and device, last dimension contiguous, data there.
void check_rows(const ArgChecker& check, std::string_view argument, const TensorView& t,
                const TensorView& like, std::string_view like_name) {
  check.same_dtype(argument, t, like_name, like.dtype);
  check.same_device(argument, t, like_name, like.device);
  check.last_dim_contiguous(argument, t);
  check.readable(argument, t);
}

// The shape of the parts that an op takes and gives.
struct PartShape {
  int64_t batch, heads, queries, head_dim;
};

// An argument's names in messages, e.g. "rest.out" and "rest.lse".
struct PartNames {
  std::string_view out, lse;
};

constexpr PartNames kResult{"out", "lse"};

void check_part(const ArgChecker& check, const PartNames& names, const AttentionPart& part,
                const PartShape& shape, const TensorView& like, std::string_view like_name) {
  check.shape(names.out, part.out,
              {{"batch", shape.batch},
               {"heads", shape.heads},
               {"queries", shape.queries},
               {"head_dim", shape.head_dim}});
  check_rows(check, names.out, part.out, like, like_name);
  check.shape(names.lse, part.lse,
              {{"batch", shape.batch}, {"heads", shape.heads}, {"queries", shape.queries}});
  check.dtype(names.lse, part.lse, {DType::kFloat32});
  check.same_device(names.lse, part.lse, like_name, like.device);
  check.readable(names.lse, part.lse);
}

void check_result(const ArgChecker& check, const AttentionPart& result, const PartShape& shape,
                  const TensorView& like, std::string_view like_name) {
  check_part(check, kResult, result, shape, like, like_name);
  check.writable("out", result.out);
  check.writable("lse", result.lse);
  check.no_overlap("out", result.out, "lse", result.lse);
}

void check_apart(const ArgChecker& check, const AttentionPart& result, std::string_view name,
                 const TensorView& input) {
  check.no_overlap("out", result.out, name, input);
  check.no_overlap("lse", result.lse, name, input);
}

const int32_t* check_query_rows(const ArgChecker& check, const TensorView* query_rows,
                                const TensorView& q, const AttentionPart& result) {
  if (query_rows == nullptr) return nullptr;
  check.shape("query_rows", *query_rows, {{"queries", q.shape[2]}});
  check.dtype("query_rows", *query_rows, {DType::kInt32});
  check.same_device("query_rows", *query_rows, "q", q.device);
  check.last_dim_contiguous("query_rows", *query_rows);
  check.readable("query_rows", *query_rows);
  check_apart(check, result, "query_rows", *query_rows);
  return static_cast<const int32_t*>(query_rows->data);
}

AttentionParams check_attention(const ArgChecker& check, const TensorView& q, const TensorView& k,
                                const TensorView& v, const TensorView* query_rows,
                                float softmax_scale, const AttentionPart& result) {
  check.rank("q", q, {"batch", "query_heads", "queries", "head_dim"});
  check.rank("k", k, {"batch", "kv_heads", "keys", "head_dim"});
  const int64_t batch = q.shape[0], query_heads = q.shape[1], queries = q.shape[2];
  const int64_t head_dim = q.shape[3], kv_heads = k.shape[1], keys = k.shape[2];
  if (head_dim % 8 != 0 || head_dim == 0 || head_dim > kMaxHeadDim) {
    check.fail("q", "a head_dim that is a multiple of 8, from 8 to " + std::to_string(kMaxHeadDim),
               std::to_string(head_dim));
  }
  for (const auto& [name, t] : {std::pair{"k", &k}, std::pair{"v", &v}}) {
    check.shape(name, *t,
                {{"batch", batch}, {"kv_heads", kv_heads}, {"keys", keys}, {"head_dim", head_dim}});
  }
  if (kv_heads == 0 ? query_heads != 0 : query_heads % kv_heads != 0) {
    check.fail("k", "kv_heads that divide query_heads=" + std::to_string(query_heads),
               std::to_string(kv_heads));
  }
  check_floating(check, "q", q);
  check.last_dim_contiguous("q", q);
  check.readable("q", q);
  check_rows(check, "k", k, q, "q");
  check_rows(check, "v", v, q, "q");
  if (!std::isfinite(softmax_scale)) {
    check.fail("softmax_scale", "a finite number", std::to_string(softmax_scale));
  }
  check_result(check, result, {batch, query_heads, queries, head_dim}, q, "q");
  check_apart(check, result, "q", q);
  check_apart(check, result, "k", k);
  check_apart(check, result, "v", v);
  return {
      .dtype = q.dtype,
      .q = view_of<const void, 3>(q),
      .k = view_of<const void, 3>(k),
      .v = view_of<const void, 3>(v),
      .out = view_of<void, 3>(result.out),
      .lse = view_of<float, 3>(result.lse),
      .batch = batch,
      .query_heads = query_heads,
      .kv_heads = kv_heads,
      .queries = queries,
      .keys = keys,
      .head_dim = static_cast<int32_t>(head_dim),
      .softmax_scale = softmax_scale,
      .query_rows = check_query_rows(check, query_rows, q, result),
  };
}

AttentionColumnSumsParams check_column_sums(const ArgChecker& check, const AttentionParams& p,
                                            const TensorView& q, const TensorView& k,
                                            const TensorView& v, const TensorView* reference_lse,
                                            const TensorView* key_weights,
                                            const TensorView* query_rows, int32_t query_group,
                                            const AttentionPart& result,
                                            const TensorView& column_sums) {
  check_query_group(check, "query_group", query_group);
  AttentionColumnSumsParams params{};
  params.attention = p;
  params.query_group = query_group;
  params.groups = (p.queries + query_group - 1) / query_group;
  check.shape("column_sums", column_sums,
              {{"batch", p.batch},
               {"query_heads", p.query_heads},
               {"groups", params.groups},
               {"keys", p.keys}});
  check.dtype("column_sums", column_sums, {DType::kFloat32, DType::kBFloat16});
  check.same_device("column_sums", column_sums, "q", q.device);
  check.last_dim_contiguous("column_sums", column_sums);
  check.writable("column_sums", column_sums);
  params.column_sums_dtype = column_sums.dtype;
  params.column_sums = view_of<void, 3>(column_sums);
  check.no_overlap("column_sums", column_sums, "q", q);
  check.no_overlap("column_sums", column_sums, "k", k);
  check.no_overlap("column_sums", column_sums, "v", v);
  check.no_overlap("column_sums", column_sums, "out", result.out);
  check.no_overlap("column_sums", column_sums, "lse", result.lse);
  if (query_rows != nullptr) {
    check.no_overlap("column_sums", column_sums, "query_rows", *query_rows);
  }
  if (key_weights != nullptr) {
    check.shape("key_weights", *key_weights,
                {{"batch", p.batch}, {"kv_heads", p.kv_heads}, {"keys", p.keys}});
    check.dtype("key_weights", *key_weights, {DType::kFloat32});
    check.same_device("key_weights", *key_weights, "q", q.device);
    check.last_dim_contiguous("key_weights", *key_weights);
    check.readable("key_weights", *key_weights);
    check_apart(check, result, "key_weights", *key_weights);
    check.no_overlap("column_sums", column_sums, "key_weights", *key_weights);
    params.key_weights = view_of<const float, 2>(*key_weights);
  }
  if (reference_lse != nullptr) {
    check.shape("reference_lse", *reference_lse,
                {{"batch", p.batch}, {"query_heads", p.query_heads}, {"queries", p.queries}});
    check.dtype("reference_lse", *reference_lse, {DType::kFloat32});
    check.same_device("reference_lse", *reference_lse, "q", q.device);
    check.readable("reference_lse", *reference_lse);
    check_apart(check, result, "reference_lse", *reference_lse);
    check.no_overlap("column_sums", column_sums, "reference_lse", *reference_lse);
    params.reference_lse = view_of<const float, 3>(*reference_lse);
  }
  return params;
}

// What the CUDA kernels of all attention take.
void check_cuda_attention(const CudaLimitsChecker& limits, const AttentionParams& p,
                          const TensorView& q, const TensorView& k, const TensorView& v,
                          const AttentionPart& result) {
  limits.dtype("q", q.dtype);
  limits.head_dim("q", p.head_dim);
  limits.softmax_scale(p.softmax_scale);
  limits.rows({{"q", &q}, {"k", &k}, {"v", &v}, {"out", &result.out}});
  limits.fits_int32("q", p.batch * p.query_heads * ((p.queries + 63) / 64), "tiles of 64 rows");
  limits.fits_int32("q", p.queries, "queries");
  limits.fits_int32("k", p.keys, "keys");
}

void check_cuda_dense(const ArgChecker& check, const AttentionParams& p, const TensorView& q,
                      const TensorView& k, const TensorView& v, const AttentionPart& result) {
  const CudaLimitsChecker limits(check, cuda_limits::kDenseAttention, q.device);
  check_cuda_attention(limits, p, q, k, v, result);
}

void check_cuda_column_sums(const ArgChecker& check, const AttentionParams& p, const TensorView& q,
                            const TensorView& k, const TensorView& v, int32_t query_group,
                            const AttentionPart& result) {
  const CudaLimits taken = cuda_limits::column_sums(p.head_dim);
  const CudaLimitsChecker limits(check, taken, q.device);
  check_cuda_attention(limits, p, q, k, v, result);
  limits.query_group("query_group", query_group);
}

void check_cuda_column_sparse(const ArgChecker& check, const ColumnSparseAttentionParams& params,
                              const TensorView& q, const TensorView& k, const TensorView& v,
                              const AttentionPart* rest, const AttentionPart& result) {
  const CudaLimitsChecker limits(check, cuda_limits::kColumnSparseAttention, q.device);
  check_cuda_attention(limits, params.attention, q, k, v, result);
  limits.query_group("columns.query_group", params.columns.query_group);
  limits.rows({{"rest.out", rest == nullptr ? nullptr : &rest->out}});
  limits.fits_int32("columns.indices", params.columns.capacity, "columns in a list");
}

bool same_view(const TensorView& a, const TensorView& b) {
  bool same = a.data == b.data && a.dtype == b.dtype && a.device == b.device && a.rank == b.rank;
  for (int32_t i = 0; same && i < a.rank; ++i) {
    same = a.shape[i] == b.shape[i] && (a.shape[i] <= 1 || a.strides[i] == b.strides[i]);
  }
  return same;
}

ColumnSparseAttentionParams check_column_sparse(const ArgChecker& check, const AttentionParams& p,
                                                const TensorView& q, const ColumnLists& columns,
                                                const AttentionPart* rest,
                                                const AttentionPart& result) {
  ColumnSparseAttentionParams params{};
  params.attention = p;
  params.columns =
      check_column_lists(check, columns, {{"batch", p.batch}, {"query_heads", p.query_heads}},
                         p.queries, "q", q.device);
  check_apart_from_lists(check, "out", result.out, columns);
  check_apart_from_lists(check, "lse", result.lse, columns);
  if (rest != nullptr) {
    constexpr PartNames kRest{"rest.out", "rest.lse"};
    check_part(check, kRest, *rest, {p.batch, p.query_heads, p.queries, p.head_dim}, q, "q");
    if (!same_view(result.out, rest->out)) {
      check.no_overlap("out", result.out, kRest.out, rest->out);
    }
    if (!same_view(result.lse, rest->lse)) {
      check.no_overlap("lse", result.lse, kRest.lse, rest->lse);
    }
    check.no_overlap("out", result.out, kRest.lse, rest->lse);
    check.no_overlap("lse", result.lse, kRest.out, rest->out);
    params.rest_out = view_of<const void, 3>(rest->out);
    params.rest_lse = view_of<const float, 3>(rest->lse);
  }
  return params;
}

CombineAttentionParams check_combine(const ArgChecker& check, const PartNames& a_names,
                                     const AttentionPart& a, const PartNames& b_names,
                                     const AttentionPart& b, const AttentionPart& result) {
  check.rank(a_names.out, a.out, {"batch", "heads", "queries", "head_dim"});
  const PartShape shape{a.out.shape[0], a.out.shape[1], a.out.shape[2], a.out.shape[3]};
  check_floating(check, a_names.out, a.out);
  check_part(check, a_names, a, shape, a.out, a_names.out);
  check_part(check, b_names, b, shape, a.out, a_names.out);
  check_result(check, result, shape, a.out, a_names.out);
  check_apart(check, result, a_names.out, a.out);
  check_apart(check, result, a_names.lse, a.lse);
  check_apart(check, result, b_names.out, b.out);
  check_apart(check, result, b_names.lse, b.lse);
  return {
      .dtype = a.out.dtype,
      .a_out = view_of<const void, 3>(a.out),
      .b_out = view_of<const void, 3>(b.out),
      .a_lse = view_of<const float, 3>(a.lse),
      .b_lse = view_of<const float, 3>(b.lse),
      .out = view_of<void, 3>(result.out),
      .lse = view_of<float, 3>(result.lse),
      .batch = shape.batch,
      .heads = shape.heads,
      .queries = shape.queries,
      .head_dim = static_cast<int32_t>(shape.head_dim),
  };
}

}  // namespace

void dense_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                     const TensorView* query_rows, float softmax_scale, const AttentionPart& result,
                     const Context& context) {
  const ArgChecker check("dense_attention");
  const AttentionParams params = check_attention(check, q, k, v, query_rows, softmax_scale, result);
  check_cuda_dense(check, params, q, k, v, result);
  run_on(q.device, context, params, cpu::dense_attention, cuda::dense_attention);
}

void dense_attention_column_sums(const TensorView& q, const TensorView& k, const TensorView& v,
                                 const TensorView* reference_lse, const TensorView* key_weights,
                                 const TensorView* query_rows, int32_t query_group,
                                 float softmax_scale, const AttentionPart& result,
                                 const TensorView& column_sums, const Context& context) {
  const ArgChecker check("dense_attention_column_sums");
  const AttentionColumnSumsParams params = check_column_sums(
      check, check_attention(check, q, k, v, query_rows, softmax_scale, result), q, k, v,
      reference_lse, key_weights, query_rows, query_group, result, column_sums);
  check_cuda_column_sums(check, params.attention, q, k, v, query_group, result);
  run_on(q.device, context, params, cpu::dense_attention_column_sums,
         cuda::dense_attention_column_sums);
}

void column_sparse_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                             const ColumnLists& columns, const AttentionPart* rest,
                             const TensorView* query_rows, float softmax_scale,
                             const AttentionPart& result, const Context& context) {
  const ArgChecker check("column_sparse_attention");
  const ColumnSparseAttentionParams params =
      check_column_sparse(check, check_attention(check, q, k, v, query_rows, softmax_scale, result),
                          q, columns, rest, result);
  check_cuda_column_sparse(check, params, q, k, v, rest, result);
  run_on(q.device, context, params, cpu::column_sparse_attention, cuda::column_sparse_attention);
}

void merge_attention(const AttentionPart& a, const AttentionPart& b, const AttentionPart& result,
                     const Context& context) {
  const ArgChecker check("merge_attention");
  const CombineAttentionParams params =
      check_combine(check, {"a.out", "a.lse"}, a, {"b.out", "b.lse"}, b, result);
  run_on(a.out.device, context, params, cpu::merge_attention, cuda::merge_attention);
}

void rest_of_attention(const AttentionPart& whole, const AttentionPart& selected,
                       const AttentionPart& result, const Context& context) {
  const ArgChecker check("rest_of_attention");
  const CombineAttentionParams params = check_combine(
      check, {"whole.out", "whole.lse"}, whole, {"selected.out", "selected.lse"}, selected, result);
  run_on(whole.out.device, context, params, cpu::rest_of_attention, cuda::rest_of_attention);
}

}  // namespace chipmunk
