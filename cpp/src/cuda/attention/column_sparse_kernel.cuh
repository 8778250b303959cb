// Column-sparse attention: who does what.
//
//   producer   K0    V0 K1    V1 K2   ..   V(last) K0' [rest]   V0' K1' ..   (or K1 V0, K2 V1)
//   consumers     QK0    PV0 QK1   PV1 QK2   ..   PV(last) QK0'   write
//
// A CTA per multiprocessor walks over tiles of query rows, in an order (tile_schedule.h) that has
// the CTAs work on one head at a time, so that its K and V stay in L2. Warpgroup 0 gathers, the
// others multiply.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <cute/arch/copy_sm90_desc.hpp>

#include "cuda/attention/column_sparse_consumer.cuh"
#include "cuda/attention/column_sparse_producer.cuh"

namespace chipmunk::cuda {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    column_sparse_attention_sm90(const __grid_constant__ ColumnSparseKernelParams p) {
  extern __shared__ __align__(1024) char raw_shared[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(raw_shared);
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (warp == 1) Producer<Traits>(p, shared).prefetch_first();
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&p.out);
    for (int s = 0; s < Traits::kStages; ++s) {
      shared.k_full[s].init(128);
      shared.v_full[s].init(128);
      shared.k_empty[s].init(4 * Traits::kWarpgroups);
      shared.v_empty[s].init(4 * Traits::kWarpgroups);
    }
    for (int s = 0; s < Traits::kWorkSlots; ++s) {
      shared.work_full[s].init(1);
      shared.work_empty[s].init(4 * Traits::kWarpgroups);
    }
    for (int w = 0; w < Traits::kWarpgroups; ++w) shared.queries_full[w].init(1);
    shared.order_ready.init(4 * Traits::kWarpgroups);
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
