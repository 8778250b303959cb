// Barriers in shared memory and by name.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>

namespace chipmunk::cuda {

// Those of nvidia-cutlass, whose waits and arrivals the compiler may move accesses to memory
// across.
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

// A position in a ring of stages, with the parity that its barriers will have.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  __device__ RingPosition after() const {
    return stage == kStages - 1 ? RingPosition{0, parity ^ 1} : RingPosition{stage + 1, parity};
  }
  __device__ RingPosition before() const {
    return stage == 0 ? RingPosition{kStages - 1, parity ^ 1} : RingPosition{stage - 1, parity};
  }
};

// Named barriers of a column-sparse attention CTA; 0 is __syncthreads.
//
// | barrier           | arrive                                   | wait                 | threads |
// |-------------------|------------------------------------------|----------------------|---------|
// | kQueriesFree + w  | warpgroup w, its last QK of a tile done  | warpgroup w          | 128     |
// | kTurn + w         | warpgroup w and the one whose turn it was| warpgroup w          | 256     |
// | kOrder            | all consumers, while the order is made   | all consumers        | all     |
// | kPart + w         | of shared rows: the other warpgroup      | warpgroup w          | 256     |
enum NamedBarrier : int { kQueriesFree = 1, kTurn = 4, kOrder = 7, kPart = 8 };

__device__ inline void named_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void named_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace chipmunk::cuda
