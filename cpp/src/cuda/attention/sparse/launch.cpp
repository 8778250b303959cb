// Chooses the instantiation of column-sparse attention, and refuses what has none.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/attention.h"
#include "cuda/attention/sparse/config.h"
#include "cuda/attention/sparse/params.h"
#include "cuda/host/device_info.h"
#include "cuda/host/error.h"
#include "cuda/host/launch.h"
#include "cuda/host/tensor_map.h"

namespace chipmunk::cuda {
namespace {

constexpr const char* kOp = "column_sparse_attention";
constexpr double kLog2E = 1.4426950408889634;

[[noreturn]] void refuse(const std::string& argument, const std::string& why) {
  throw Unsupported(std::string(kOp) + ": " + argument + ": " + why);
}

struct RowsShape {
  int64_t batch, heads, rows;
};

// Rows are read and written 16 bytes at a time. A stride that is never taken may be anything.
template <class Rows>
void require_aligned(const char* argument, const Rows& rows, const RowsShape& shape) {
  if (shape.batch * shape.heads * shape.rows == 0) return;
  const auto whole = [](int64_t size, int64_t stride) { return size == 1 || stride % 8 == 0; };
  if (reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && whole(shape.batch, rows.strides[0]) &&
      whole(shape.heads, rows.strides[1]) && whole(shape.rows, rows.strides[2])) {
    return;
  }
  refuse(argument,
         "the CUDA kernel needs rows that start at multiples of 16 bytes; pass a contiguous copy");
}

void require_supported(const ColumnSparseAttentionParams& op) {
  const AttentionParams& a = op.attention;
  if (a.dtype != DType::kBFloat16 && a.dtype != DType::kFloat16) {
    refuse("q", std::string("the CUDA kernel takes bfloat16 or float16, not ") + name_of(a.dtype));
  }
  if (row_blocks_for(a.head_dim, 64) == 0) {
    refuse("q",
           "the CUDA kernel takes head_dim 64, 96, 128 or 256, not " + std::to_string(a.head_dim));
  }
  if (row_blocks_for(a.head_dim, op.columns.query_group) == 0) {
    refuse("columns.query_group",
           "the CUDA kernel takes multiples of 64, not " + std::to_string(op.columns.query_group));
  }
  if (!(a.softmax_scale >= 0.0f)) {
    refuse("softmax_scale",
           "the CUDA kernel takes numbers >= 0, not " + std::to_string(a.softmax_scale));
  }
  const RowsShape queries{a.batch, a.query_heads, a.queries}, keys{a.batch, a.kv_heads, a.keys};
  require_aligned("q", a.q, queries);
  require_aligned("k", a.k, keys);
  require_aligned("v", a.v, keys);
  require_aligned("out", a.out, queries);
  if (op.rest_out.data != nullptr) require_aligned("rest.out", op.rest_out, queries);
}

int32_t as_int32(const char* argument, int64_t number) {
  if (number > std::numeric_limits<int32_t>::max() ||
      number < std::numeric_limits<int32_t>::min()) {
    refuse(argument, "too large for the CUDA kernel");
  }
  return static_cast<int32_t>(number);
}

// Never 0: a score of -inf, which masks a key, must stay -inf.
float scale_log2(float softmax_scale) {
  return std::max(static_cast<float>(softmax_scale * kLog2E),
                  std::numeric_limits<float>::denorm_min());
}

template <class Element, int kHeadDim>
void launch_for(int row_blocks, const ColumnSparseKernelParams& params, const LaunchSite& site) {
  if constexpr (kHeadDim < 256) {
    if (row_blocks == 3) return launch_column_sparse<Element, kHeadDim, 3>(params, site);
  }
  if (row_blocks == 2) return launch_column_sparse<Element, kHeadDim, 2>(params, site);
  return launch_column_sparse<Element, kHeadDim, 1>(params, site);
}

template <class Element>
void launch_for(int row_blocks, const ColumnSparseKernelParams& params, const LaunchSite& site) {
  switch (params.op.attention.head_dim) {
    case 64:
      return launch_for<Element, 64>(row_blocks, params, site);
    case 96:
      return launch_for<Element, 96>(row_blocks, params, site);
    case 128:
      return launch_for<Element, 128>(row_blocks, params, site);
    default:
      return launch_for<Element, 256>(row_blocks, params, site);
  }
}

}  // namespace

void column_sparse_attention(const ColumnSparseAttentionParams& op, const LaunchSite& site) {
  require_hopper(kOp, site.device);
  require_supported(op);
  const AttentionParams& a = op.attention;
  if (a.batch * a.query_heads * a.queries == 0) return;
  const DeviceGuard guard(site.device);
  const int row_blocks = row_blocks_for(a.head_dim, op.columns.query_group);
  const int rows = 64 * row_blocks;
  const int64_t tiles_per_head = (a.queries + rows - 1) / rows;
  ColumnSparseKernelParams params{
      .q = head_rows_map(kOp, "q", a.dtype, a.q, {a.batch, a.query_heads, a.queries, a.head_dim},
                         64),
      .out = head_rows_map(kOp, "out", a.dtype,
                           {a.out.data, a.out.strides[0], a.out.strides[1], a.out.strides[2]},
                           {a.batch, a.query_heads, a.queries, a.head_dim}, 16),
      .op = op,
      .tiles = as_int32("q", a.batch * a.query_heads * tiles_per_head),
      .tiles_per_head = as_int32("q", tiles_per_head),
      .tiles_per_group = op.columns.query_group / rows,
      .rounds = {},
      .query_heads_per_kv_head = as_int32("k", a.query_heads / std::max<int64_t>(1, a.kv_heads)),
      .k_row_bytes = as_int32("k", 2 * a.k.strides[2]),
      .v_row_bytes = as_int32("v", 2 * a.v.strides[2]),
      .rest_row_bytes = as_int32("rest.out", 2 * op.rest_out.strides[2]),
      .scale_log2 = scale_log2(a.softmax_scale),
      .has_rest = op.rest_out.data != nullptr};
  if (a.dtype == DType::kFloat16) return launch_for<__half>(row_blocks, params, site);
  return launch_for<__nv_bfloat16>(row_blocks, params, site);
}

}  // namespace chipmunk::cuda
