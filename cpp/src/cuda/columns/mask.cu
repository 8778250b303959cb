// Column lists to a mask and back. One CTA a row.
#include <cuda_runtime.h>

#include "cuda/columns.h"
#include "cuda/columns/ordered_rows.cuh"
#include "cuda/host/device_info.h"
#include "cuda/host/launch.h"

namespace chipmunk::cuda {
namespace {

constexpr int kThreads = 512;

}  // namespace

__global__ void __launch_bounds__(kThreads)
    columns_from_mask_sm90(const __grid_constant__ ColumnsMaskParams p) {
  __shared__ OrderedRowScratch<kThreads> scratch;
  const int64_t row = blockIdx.x;
  const bool* mask = static_cast<const bool*>(p.mask.data) + p.mask.offset(row);
  int32_t* list = static_cast<int32_t*>(p.indices.data) + p.indices.offset(row);

  const uint32_t found = write_ordered<kThreads>(
      p.n, p.capacity, [&](int64_t j) { return mask[j * p.mask.last_stride]; }, list,
      p.indices.last_stride, scratch);
  if (threadIdx.x == 0) {
    static_cast<int32_t*>(p.counts.data)[p.counts.offset(row)] =
        static_cast<int32_t>(min(static_cast<int64_t>(found), p.capacity));
  }
}

__global__ void __launch_bounds__(kThreads)
    columns_to_mask_sm90(const __grid_constant__ ColumnsMaskParams p) {
  const int64_t row = blockIdx.x;
  bool* mask = static_cast<bool*>(p.mask.data) + p.mask.offset(row);
  const int32_t* list = static_cast<const int32_t*>(p.indices.data) + p.indices.offset(row);
  const int64_t count =
      min(static_cast<int64_t>(static_cast<const int32_t*>(p.counts.data)[p.counts.offset(row)]),
          p.capacity);

  for (int64_t j = threadIdx.x; j < p.n; j += kThreads) mask[j * p.mask.last_stride] = false;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const int64_t j = list[i * p.indices.last_stride];
    if (j >= 0 && j < p.n) mask[j * p.mask.last_stride] = true;
  }
}

namespace {

LaunchShape one_block_a_row(int64_t rows) {
  return {.grid = dim3(static_cast<unsigned>(rows)), .block = dim3(kThreads)};
}

}  // namespace

void columns_from_mask(const ColumnsMaskParams& params, const LaunchSite& site) {
  require_hopper("columns_from_mask", site.device);
  if (params.counts.rows() == 0) return;
  launch("columns_from_mask", columns_from_mask_sm90, one_block_a_row(params.counts.rows()), site,
         params);
}

void columns_to_mask(const ColumnsMaskParams& params, const LaunchSite& site) {
  require_hopper("columns_to_mask", site.device);
  if (params.counts.rows() == 0 || params.n == 0) return;
  launch("columns_to_mask", columns_to_mask_sm90, one_block_a_row(params.counts.rows()), site,
         params);
}

}  // namespace chipmunk::cuda
