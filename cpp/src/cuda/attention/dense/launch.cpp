// Chooses the instantiation of dense attention. ops/cuda_limits.h says what it takes.
#include "cuda/host/launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cassert>

#include "cuda/attention.h"
#include "cuda/attention/dense/config.h"
#include "cuda/attention/dense/params.h"
#include "cuda/attention/kernel_params.h"
#include "cuda/host/device_info.h"
#include "cuda/host/tensor_map.h"

namespace chipmunk::cuda {
namespace {

// `launch_for` has operator()<Element, kHeadDim>().
template <class Element, class Launch>
void for_head_dim(int head_dim, const Launch& launch_for) {
  switch (head_dim) {
    case 64:
      return launch_for.template operator()<Element, 64>();
    case 96:
      return launch_for.template operator()<Element, 96>();
    case 128:
      return launch_for.template operator()<Element, 128>();
    default:
      return launch_for.template operator()<Element, 256>();
  }
}
template <class Launch>
void for_instantiation(const AttentionParams& a, const Launch& launch_for) {
  if (a.dtype == DType::kFloat16) return for_head_dim<__half>(a.head_dim, launch_for);
  return for_head_dim<__nv_bfloat16>(a.head_dim, launch_for);
}

DenseKernelParams dense_params(const char* op, const AttentionParams& a, int rows_per_tile,
                               bool keeps_references) {
  assert(a.softmax_scale >= 0.0f);
  const auto keys = static_cast<uint32_t>(dense_config(a.head_dim, false).keys);
  const HeadRowsShape shape{a.batch, a.kv_heads, a.keys, a.head_dim};
  DenseKernelParams params;
  static_cast<AttentionKernelParams&>(params) = kernel_params(op, a, rows_per_tile);
  params.rows_per_tile = rows_per_tile;
  params.keeps_references = keeps_references;
  if (a.keys > 0) {
    params.k = head_rows_map(op, "k", a.dtype, a.k, shape, keys);
    params.v = head_rows_map(op, "v", a.dtype, a.v, shape, keys);
  }
  return params;
}

// Without groups there is nothing to permute.
void run_dense(const char* op, const AttentionParams& a, bool keeps_references,
               const LaunchSite& site) {
  AttentionParams in_order = a;
  in_order.query_rows = nullptr;
  const DenseKernelParams params =
      dense_params(op, in_order, dense_config(a.head_dim, false).query_rows(), keeps_references);
  for_instantiation(
      a, [&]<class Element, int kHeadDim>() { launch_dense<Element, kHeadDim>(params, site); });
}

}  // namespace

void dense_attention(const AttentionParams& a, const LaunchSite& site) {
  constexpr const char* kOp = "dense_attention";
  require_hopper(kOp, site.device);
  const DeviceGuard guard(site.device);
  run_dense(kOp, a, /*keeps_references=*/false, site);
}

void dense_attention_column_sums(const AttentionColumnSumsParams& op, const LaunchSite& site) {
  constexpr const char* kOp = "dense_attention_column_sums";
  require_hopper(kOp, site.device);
  const AttentionParams& a = op.attention;
  const DeviceGuard guard(site.device);
  const int row_blocks = column_sum_row_blocks(a.head_dim, op.query_group);
  assert(row_blocks > 0);
  ColumnSumsKernelParams params;
  static_cast<DenseKernelParams&>(params) =
      dense_params(kOp, a, 64 * row_blocks, /*keeps_references=*/false);
  params.reference_lse = op.reference_lse;
  if (op.reference_lse.data == nullptr) run_dense(kOp, a, /*keeps_references=*/true, site);
  params.key_weights = op.key_weights;
  params.sums = op.column_sums;
  params.sums_are_float = op.column_sums_dtype == DType::kFloat32;
  const int64_t* strides = op.column_sums.strides;
  const auto pair_bytes = static_cast<uintptr_t>(params.sums_are_float ? 8 : 4);
  params.sums_in_pairs = reinterpret_cast<uintptr_t>(op.column_sums.data) % pair_bytes == 0 &&
                         strides[0] % 2 == 0 && strides[1] % 2 == 0 && strides[2] % 2 == 0;
  params.rows_per_group = op.query_group;
  for_instantiation(a, [&]<class Element, int kHeadDim>() {
    launch_column_sums<Element, kHeadDim>(params, site);
  });
}

}  // namespace chipmunk::cuda
