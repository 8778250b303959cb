// Chooses the instantiation of column-sparse attention. ops/cuda_limits.h says what it takes.
#include "cuda/host/launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cassert>

#include "cuda/attention.h"
#include "cuda/attention/kernel_params.h"
#include "cuda/attention/sparse/config.h"
#include "cuda/attention/sparse/params.h"
#include "cuda/host/device_info.h"

namespace chipmunk::cuda {
namespace {

constexpr const char* kOp = "column_sparse_attention";

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
  switch (params.attention.head_dim) {
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
  ColumnSparseKernelParams params;
  static_cast<AttentionKernelParams&>(params) = kernel_params(kOp, a, rows);
  params.rest_out = op.rest_out;
  params.rest_lse = op.rest_lse;
  params.columns = op.columns;
  params.tiles_per_group = op.columns.query_group / rows;
  params.k_row_bytes = static_cast<int32_t>(2 * a.k.strides[2]);
  params.v_row_bytes = static_cast<int32_t>(2 * a.v.strides[2]);
  params.rest_row_bytes = static_cast<int32_t>(2 * op.rest_out.strides[2]);
  if (a.dtype == DType::kFloat16) return launch_for<__half>(row_blocks, params, site);
  return launch_for<__nv_bfloat16>(row_blocks, params, site);
}

}  // namespace chipmunk::cuda
