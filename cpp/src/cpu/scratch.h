// Working memory for the threads of one call.
#pragma once

#include <cstdint>
#include <memory>

namespace chipmunk::cpu {

// `floats` floats for each of `workers` workers, not initialised, each share on its own cache
// lines.
class Scratch {
 public:
  Scratch(int workers, int64_t floats)
      : stride_((floats + kLine - 1) / kLine * kLine),
        memory_(new float[static_cast<size_t>(workers * stride_ + kLine)]) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    const uintptr_t line = kLine * sizeof(float);
    first_ = memory_.get() + (line - address % line) % line / sizeof(float);
  }
  float* of(int worker) const { return first_ + worker * stride_; }

 private:
  static constexpr int64_t kLine = 16;  // floats
  int64_t stride_;
  std::unique_ptr<float[]> memory_;
  float* first_;
};

}  // namespace chipmunk::cpu
