// Barriers in shared memory and by name.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>

namespace chipmunk::cuda {

// nvidia-cutlass's barriers let the compiler move memory accesses across a wait or an arrival.
// These do not.
template <class Base>
struct Ordered : Base {
  __device__ __forceinline__ void wait(uint32_t parity) const {
    Base::wait(parity);
    asm volatile("" ::: "memory");
  }
  __device__ __forceinline__ void arrive() const {
    asm volatile("" ::: "memory");
    Base::arrive();
  }
};
using Barrier = Ordered<cutlass::arch::ClusterBarrier>;
using TransactionBarrier = Ordered<cutlass::arch::ClusterTransactionBarrier>;

// Named barriers: a kernel numbers its own; 0 is __syncthreads.
__device__ inline void named_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void named_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace chipmunk::cuda
