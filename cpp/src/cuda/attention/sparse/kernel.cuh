// Column-sparse attention: who does what.
//
//   producer   K0    V0 K1    V1 K2   ..   V(last) K0' [rest]   V0' K1' ..   (or K1 V0, K2 V1)
//   consumers     QK0    PV0 QK1   PV1 QK2   ..   PV(last) QK0'   write
//
// A CTA per multiprocessor walks over tiles of query rows (tile_order.cuh), so that all CTAs work
// on neighbouring heads at a time, whose K and V stay in L2. Warpgroup 0 gathers, the others
// multiply.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "cuda/attention/consumer.cuh"
#include "cuda/attention/sparse/producer.cuh"

namespace chipmunk::cuda {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    column_sparse_attention_sm90(const __grid_constant__ ColumnSparseKernelParams p) {
  extern __shared__ __align__(1024) char raw_shared[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(raw_shared);
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&p.out);
    shared.init(/*producers=*/128, p.attention.query_rows != nullptr);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  if (warp < 4) {
    cutlass::arch::warpgroup_reg_dealloc<Traits::kConfig.producer_registers>();
    Producer<Traits>(p, shared).run();
  } else {
    cutlass::arch::warpgroup_reg_alloc<Traits::kConfig.consumer_registers>();
    Consumer<Traits>(p, shared, warp / 4 - 1).run();
  }
}

}  // namespace chipmunk::cuda
