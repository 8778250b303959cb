// A ring of stages in shared memory: a producer fills them, consumers read and free them.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>

#include "cuda/device/barriers.cuh"

namespace chipmunk::cuda {

// A position in a ring, with the parity that its barriers will have.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  // A producer's first pass over a ring waits for nothing.
  static __device__ RingPosition of_producer() { return {0, 1}; }

  __device__ RingPosition& operator++() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
    return *this;
  }
  __device__ RingPosition after() const {
    return stage == kStages - 1 ? RingPosition{0, parity ^ 1} : RingPosition{stage + 1, parity};
  }
  __device__ RingPosition before() const {
    return stage == 0 ? RingPosition{kStages - 1, parity ^ 1} : RingPosition{stage - 1, parity};
  }
};

// The barriers of a ring; the stages' memory is the owner's.
//
// | barrier | arrive             | wait                 |
// |---------|--------------------|----------------------|
// | full    | commit*, producers | wait, consumers      |
// | empty   | release, consumers | acquire, producers   |
template <int kStages>
struct Ring {
  using Position = RingPosition<kStages>;
  TransactionBarrier full[kStages];
  Barrier empty[kStages];

  // By one thread, before a fence_barrier_init and a __syncthreads.
  __device__ void init(uint32_t producers, uint32_t consumers) {
    for (int stage = 0; stage < kStages; ++stage) {
      full[stage].init(producers);
      empty[stage].init(consumers);
    }
  }
  // Waits until the consumers are done with what was in the stage.
  __device__ __forceinline__ void acquire(const Position& at) const {
    empty[at.stage].wait(at.parity);
  }
  // This thread's share of the stage is there.
  __device__ __forceinline__ void commit(const Position& at) const { full[at.stage].arrive(); }
  // It is there when the cp.async copies that this thread has issued so far are.
  __device__ __forceinline__ void commit_copies(const Position& at) const {
    cutlass::arch::cpasync_barrier_arrive_noinc(reinterpret_cast<const uint64_t*>(&full[at.stage]));
  }
  __device__ __forceinline__ void wait(const Position& at) const { full[at.stage].wait(at.parity); }
  __device__ __forceinline__ void release(const Position& at) const { empty[at.stage].arrive(); }
};

}  // namespace chipmunk::cuda
