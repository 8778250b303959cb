#include "chipmunk_kernels/mlp.h"

#include <string>

#include "cpu/mlp.h"
#include "cuda/mlp.h"
#include "ops/check.h"
#include "ops/column_lists.h"
#include "ops/cuda_limits.h"
#include "ops/dispatch.h"

namespace chipmunk {
namespace {

void check_floating(const ArgChecker& check, const char* argument, const TensorView& t) {
  check.dtype(argument, t, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
}

// What the CUDA kernels take, after everything that finds a caller's mistake.
void check_cuda(const ArgChecker& check, const char* argument, const TensorView& t) {
  CudaLimitsChecker(check, cuda_limits::kMlp, t.device).dtype(argument, t.dtype);
}

void check_like(const ArgChecker& check, const char* argument, const TensorView& t,
                const char* other, const TensorView& like) {
  check.same_dtype(argument, t, other, like.dtype);
  check.same_device(argument, t, other, like.device);
  check.last_dim_contiguous(argument, t);
  check.readable(argument, t);
}

ColumnListsParams check_mlp_lists(const ArgChecker& check, const ColumnLists& columns,
                                  int64_t batch, int64_t tokens, const char* other, Device device) {
  if (columns.query_group != kMlpQueryGroup) {
    check.fail("columns.query_group", std::to_string(kMlpQueryGroup),
               std::to_string(columns.query_group));
  }
  return check_column_lists(check, columns, {{"batch", batch}}, tokens, other, device);
}

ColumnSparseFc1Params check_fc1(const ArgChecker& check, const TensorView& x, const TensorView& w1,
                                const TensorView* b1, const ColumnLists& columns,
                                Activation activation, const char* cache_name,
                                const TensorView& cache, const TensorView& delta) {
  check.rank("x", x, {"batch", "tokens", "channels"});
  check_floating(check, "x", x);
  check.last_dim_contiguous("x", x);
  check.readable("x", x);
  const int64_t batch = x.shape[0], tokens = x.shape[1], channels = x.shape[2];

  const bool gated = is_gated(activation);
  const std::string w1_shape =
      std::string(gated ? "shape [2 * hidden" : "shape [hidden") + ", channels=";
  if (w1.rank != 2 || w1.shape[1] != channels || (gated && w1.shape[0] % 2 != 0)) {
    check.fail("w1", w1_shape + std::to_string(channels) + "]", to_string(w1));
  }
  check_like(check, "w1", w1, "x", x);
  const int64_t hidden = gated ? w1.shape[0] / 2 : w1.shape[0];
  if (b1 != nullptr) {
    check.shape("b1", *b1, {{gated ? "2 * hidden" : "hidden", w1.shape[0]}});
    check_like(check, "b1", *b1, "x", x);
  }
  const ColumnListsParams lists = check_mlp_lists(check, columns, batch, tokens, "x", x.device);

  check.shape(cache_name, cache, {{"batch", batch}, {"hidden", hidden}, {"tokens", tokens}});
  check_like(check, cache_name, cache, "x", x);
  check.writable(cache_name, cache);
  check.shape("packed_delta", delta,
              {{"batch", batch},
               {"groups", lists.groups},
               {"capacity", lists.capacity},
               {"query_group", kMlpQueryGroup}});
  check_like(check, "packed_delta", delta, "x", x);
  check.writable("packed_delta", delta);

  for (const auto& [argument, output] :
       {std::pair{cache_name, &cache}, std::pair{"packed_delta", &delta}}) {
    check.no_overlap(argument, *output, "x", x);
    check.no_overlap(argument, *output, "w1", w1);
    if (b1 != nullptr) check.no_overlap(argument, *output, "b1", *b1);
    check_apart_from_lists(check, argument, *output, columns);
  }
  check.no_overlap("packed_delta", delta, cache_name, cache);

  return {
      .dtype = x.dtype,
      .activation = activation,
      .x = view_of<const void, 2>(x),
      .w1 = view_of<const void, 1>(w1),
      .b1 = b1 == nullptr ? nullptr : b1->data,
      .columns = lists,
      .cache = view_of<void, 2>(cache),
      .packed_delta = view_of<void, 3>(delta),
      .batch = batch,
      .tokens = tokens,
      .channels = channels,
      .hidden = hidden,
  };
}

ColumnSparseFc2Params check_fc2(const ArgChecker& check, const TensorView& delta,
                                const TensorView& w2t, const ColumnLists& columns,
                                const char* out_name, const TensorView& out) {
  check.rank(out_name, out, {"batch", "tokens", "out_channels"});
  check_floating(check, out_name, out);
  check.last_dim_contiguous(out_name, out);
  check.writable(out_name, out);
  const int64_t batch = out.shape[0], tokens = out.shape[1], out_channels = out.shape[2];
  const ColumnListsParams lists =
      check_mlp_lists(check, columns, batch, tokens, out_name, out.device);

  check.shape("packed_delta", delta,
              {{"batch", batch},
               {"groups", lists.groups},
               {"capacity", lists.capacity},
               {"query_group", kMlpQueryGroup}});
  check_like(check, "packed_delta", delta, out_name, out);
  if (w2t.rank != 2 || w2t.shape[1] != out_channels) {
    check.fail("w2t", "shape [hidden, out_channels=" + std::to_string(out_channels) + "]",
               to_string(w2t));
  }
  check_like(check, "w2t", w2t, out_name, out);
  check.no_overlap(out_name, out, "packed_delta", delta);
  check.no_overlap(out_name, out, "w2t", w2t);
  check_apart_from_lists(check, out_name, out, columns);

  return {
      .dtype = out.dtype,
      .packed_delta = view_of<const void, 3>(delta),
      .w2t = view_of<const void, 1>(w2t),
      .columns = lists,
      .out = view_of<void, 2>(out),
      .batch = batch,
      .tokens = tokens,
      .hidden = w2t.shape[0],
      .out_channels = out_channels,
  };
}

// Both halves, and what one of them writes against what the other reads.
struct ColumnSparseMlpParams {
  ColumnSparseFc1Params fc1;
  ColumnSparseFc2Params fc2;
};

ColumnSparseMlpParams check_mlp(const ArgChecker& check, const TensorView& x, const TensorView& w1,
                                const TensorView* b1, const TensorView& w2t,
                                const ColumnLists& columns, Activation activation,
                                const MlpCache& cache, const TensorView& delta) {
  constexpr const char* kActivations = "cache.activations";
  constexpr const char* kOutput = "cache.output";
  const ColumnSparseFc1Params fc1 =
      check_fc1(check, x, w1, b1, columns, activation, kActivations, cache.activations, delta);
  if (w2t.rank != 2 || w2t.shape[0] != fc1.hidden) {
    check.fail("w2t", "shape [hidden=" + std::to_string(fc1.hidden) + ", out_channels]",
               to_string(w2t));
  }
  check_like(check, "w2t", w2t, "x", x);
  check.shape(kOutput, cache.output,
              {{"batch", fc1.batch}, {"tokens", fc1.tokens}, {"out_channels", w2t.shape[1]}});
  check_like(check, kOutput, cache.output, "x", x);
  const ColumnSparseFc2Params fc2 = check_fc2(check, delta, w2t, columns, kOutput, cache.output);
  check.no_overlap(kOutput, cache.output, kActivations, cache.activations);
  check.no_overlap(kActivations, cache.activations, "w2t", w2t);
  check.no_overlap("packed_delta", delta, "w2t", w2t);
  check.no_overlap(kOutput, cache.output, "x", x);
  check.no_overlap(kOutput, cache.output, "w1", w1);
  if (b1 != nullptr) check.no_overlap(kOutput, cache.output, "b1", *b1);
  return {fc1, fc2};
}

}  // namespace

void column_sparse_fc1(const TensorView& x, const TensorView& w1, const TensorView* b1,
                       const ColumnLists& columns, Activation activation,
                       const TensorView& activation_cache, const TensorView& packed_delta,
                       const Context& context) {
  const ArgChecker check("column_sparse_fc1");
  const ColumnSparseFc1Params params = check_fc1(
      check, x, w1, b1, columns, activation, "activation_cache", activation_cache, packed_delta);
  check_cuda(check, "x", x);
  run_on(x.device, context, params, cpu::column_sparse_fc1, cuda::column_sparse_fc1);
}

void column_sparse_fc2(const TensorView& packed_delta, const TensorView& w2t,
                       const ColumnLists& columns, const TensorView& out, const Context& context) {
  const ArgChecker check("column_sparse_fc2");
  const ColumnSparseFc2Params params = check_fc2(check, packed_delta, w2t, columns, "out", out);
  check_cuda(check, "out", out);
  run_on(out.device, context, params, cpu::column_sparse_fc2, cuda::column_sparse_fc2);
}

void column_sparse_mlp(const TensorView& x, const TensorView& w1, const TensorView* b1,
                       const TensorView& w2t, const ColumnLists& columns, Activation activation,
                       const MlpCache& cache, const TensorView& packed_delta,
                       const Context& context) {
  const ArgChecker check("column_sparse_mlp");
  const ColumnSparseMlpParams params =
      check_mlp(check, x, w1, b1, w2t, columns, activation, cache, packed_delta);
  check_cuda(check, "x", x);
  run_on(x.device, context, params.fc1, cpu::column_sparse_fc1, cuda::column_sparse_fc1);
  run_on(x.device, context, params.fc2, cpu::column_sparse_fc2, cuda::column_sparse_fc2);
}

}  // namespace chipmunk
