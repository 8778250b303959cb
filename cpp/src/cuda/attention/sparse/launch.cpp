// Chooses the instantiation of column-sparse attention. ops/cuda_limits.h says what it takes.
#include "cuda/host/launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cassert>
#include <limits>

#include "cuda/attention.h"
#include "cuda/attention/sparse/config.h"
#include "cuda/attention/sparse/params.h"
#include "cuda/host/device_info.h"
#include "cuda/host/tensor_map.h"

namespace chipmunk::cuda {
namespace {

constexpr const char* kOp = "column_sparse_attention";
constexpr double kLog2E = 1.4426950408889634;

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
  const AttentionParams& a = op.attention;
  const DeviceGuard guard(site.device);
  const int row_blocks = row_blocks_for(a.head_dim, op.columns.query_group);
  assert(row_blocks > 0 && a.softmax_scale >= 0.0f);
  const int rows = 64 * row_blocks;
  const int64_t tiles_per_head = (a.queries + rows - 1) / rows;
  ColumnSparseKernelParams params{
      .q = head_rows_map(kOp, "q", a.dtype, a.q, {a.batch, a.query_heads, a.queries, a.head_dim},
                         64),
      .out = head_rows_map(kOp, "out", a.dtype,
                           {a.out.data, a.out.strides[0], a.out.strides[1], a.out.strides[2]},
                           {a.batch, a.query_heads, a.queries, a.head_dim}, 16),
      .op = op,
      .tiles = static_cast<int32_t>(a.batch * a.query_heads * tiles_per_head),
      .tiles_per_head = static_cast<int32_t>(tiles_per_head),
      .tiles_per_group = op.columns.query_group / rows,
      .rounds = {},
      .query_heads_per_kv_head =
          static_cast<int32_t>(a.query_heads / std::max<int64_t>(1, a.kv_heads)),
      .k_row_bytes = static_cast<int32_t>(2 * a.k.strides[2]),
      .v_row_bytes = static_cast<int32_t>(2 * a.v.strides[2]),
      .rest_row_bytes = static_cast<int32_t>(2 * op.rest_out.strides[2]),
      .scale_log2 = scale_log2(a.softmax_scale),
      .has_rest = op.rest_out.data != nullptr};
  if (a.dtype == DType::kFloat16) return launch_for<__half>(row_blocks, params, site);
  return launch_for<__nv_bfloat16>(row_blocks, params, site);
}

}  // namespace chipmunk::cuda
