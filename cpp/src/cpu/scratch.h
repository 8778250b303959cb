// Working memory for the threads of one call.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace chipmunk::cpu {

// Scratch memory of each worker, not initialised, on cache-line boundaries.
class Scratch {
 public:
  Scratch(int64_t floats_each, int workers)
      : stride_((floats_each + 15) / 16 * 16),
        memory_(static_cast<float*>(
            ::operator new(sizeof(float) * static_cast<size_t>(stride_ * workers), kAlignment))) {}
  float* of(int worker) const { return memory_.get() + stride_ * worker; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlignment); }
  };
  int64_t stride_;
  std::unique_ptr<float, Free> memory_;
};

}  // namespace chipmunk::cpu
