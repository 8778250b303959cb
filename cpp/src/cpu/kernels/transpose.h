// Transposes kLanes x kLanes floats in registers. C headers only, internal linkage.
#pragma once

#include "cpu/kernels/vector.h"

namespace chipmunk::cpu {
namespace {

// Row i of the result holds element i of every given row. log2(kLanes) rounds, each of which
// interleaves row i with row i + kLanes / 2.
inline void transpose(Vf (&rows)[kLanes]) {
  for (int round = 1; round < kLanes; round *= 2) {
    Vf next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      const Vf a = rows[i], b = rows[i + kLanes / 2];
#if defined(__AVX512F__)
      next[2 * i] =
          __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,
                                                14, 30, 15, 31);
#elif defined(__AVX2__)
      next[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
      next[2 * i] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
    }
    memcpy(rows, next, sizeof(next));
  }
}

}  // namespace
}  // namespace chipmunk::cpu
