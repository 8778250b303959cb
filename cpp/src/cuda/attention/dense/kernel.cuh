// Dense attention, with or without column sums: who does what.
//
//   thread 0 (copies)   K0    V0 K1    V1 K2   ..   V(last) K0' V0' K1' ..
//   consumers              QK0    PV0 QK1   PV1 QK2   ..   PV(last) QK0'   write
//   warp 1 (sums)              add 0        add 1      ..                  add 0'
//
// A CTA per multiprocessor walks over tiles of query rows, so that all CTAs work on neighbouring
// heads at a time, whose K and V stay in L2. Warpgroup 0 loads and adds, the others multiply: they
// are the consumers of column-sparse attention.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "cuda/attention/consumer.cuh"
#include "cuda/attention/dense/producer.cuh"
#include "cuda/attention/dense/sums_writer.cuh"

namespace chipmunk::cuda {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    dense_attention_sm90(const __grid_constant__ typename Traits::Params p) {
  extern __shared__ __align__(1024) char raw_shared[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(raw_shared);
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (p.attention.keys == 0) {
    if (warp < 4) write_empty_tiles<Traits>(p);
    return;
  }
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&p.q);
    cute::prefetch_tma_descriptor(&p.k);
    cute::prefetch_tma_descriptor(&p.v);
    cute::prefetch_tma_descriptor(&p.out);
    shared.init(/*producers=*/1, p.attention.query_rows != nullptr,
                /*further_readers=*/Traits::kSumsColumns ? 1 : 0);
    if constexpr (Traits::kSumsColumns) shared.sums.init();
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  if (warp < 4) {
    cutlass::arch::warpgroup_reg_dealloc<Traits::kConfig.producer_registers>();
    if (threadIdx.x == 0) DenseProducer<Traits>(p, shared).run();
    if constexpr (Traits::kSumsColumns) {
      if (warp == 1) ColumnSumsWriter<Traits>(p, shared).run();
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Traits::kConfig.consumer_registers>();
    Consumer<Traits>(p, shared, warp / 4 - 1).run();
  }
}

}  // namespace chipmunk::cuda
