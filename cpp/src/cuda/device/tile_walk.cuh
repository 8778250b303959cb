// How the producer of a persistent CTA tells everybody which tiles the CTA works on.
#pragma once

#include <cstdint>

#include "cuda/device/barriers.cuh"

namespace chipmunk::cuda {

// The last kSlots pieces of work, numbered from 0. One thread publishes them in order.
//
// | barrier | arrive                      | wait                   | count     |
// |---------|-----------------------------|------------------------|-----------|
// | full    | the publishing thread       | all who read the work  | 1         |
// | empty   | `readers` arrivals, release | the publishing thread  | `readers` |
template <class Work, int kSlots>
struct TileWalk {
  Barrier full[kSlots], empty[kSlots];
  Work slots[kSlots];

  // By one thread, before a fence_barrier_init and a __syncthreads.
  __device__ void init(uint32_t readers) {
    for (int slot = 0; slot < kSlots; ++slot) {
      full[slot].init(1);
      empty[slot].init(readers);
    }
  }
  __device__ __forceinline__ void publish(uint32_t n, const Work& work) {
    empty[n % kSlots].wait(n / kSlots % 2 ^ 1);
    slots[n % kSlots] = work;
    full[n % kSlots].arrive();
  }
  __device__ __forceinline__ const Work& wait(uint32_t n) const {
    full[n % kSlots].wait(n / kSlots % 2);
    return slots[n % kSlots];
  }
  // Of work that has been waited for.
  __device__ __forceinline__ const Work& operator[](uint32_t n) const { return slots[n % kSlots]; }
  __device__ __forceinline__ void release(uint32_t n) const { empty[n % kSlots].arrive(); }
};

}  // namespace chipmunk::cuda
