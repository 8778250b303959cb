// Online softmax of the two rows that a thread holds of a 64-row wgmma accumulator.
//
// Accumulator word i is of row (i >> 1) & 1 and column 8 * (i >> 2) + 2 * (lane & 3) + (i & 1); the
// four lanes of a quad hold one row between them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>
#include <cstdint>

namespace chipmunk::cuda {

__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Two floats, rounded, in one word; the first in the lower half.
template <class Element>
__device__ uint32_t pack_pair(float low, float high);
template <>
__device__ inline uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
__device__ inline uint32_t pack_pair<__half>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// The weights are exp2(scale_log2 * score - reference). Any reference gives the same quotient; this
// one is at most kSlack below the row's running maximum, so no weight exceeds 2^kSlack, and a tile
// that does not raise the maximum by more leaves the accumulated output alone. It is finite, so
// that a score of -inf weighs 0 whatever came before.
struct OnlineSoftmax {
  static constexpr float kSlack = 8.0f;

  float scale_log2;
  float reference[2] = {-FLT_MAX, -FLT_MAX};  // equal in a quad
  float sum[2] = {0.0f, 0.0f};                // of this lane's columns

  // Turns a tile's scores into weights; `out` are the row's weighted values so far.
  template <int kScores, int kOut>
  __device__ void step(float (&scores)[kScores], float (&out)[kOut]) {
    const float top0 = row_max(scores, 0) * scale_log2, top1 = row_max(scores, 1) * scale_log2;
    const bool raise = top0 > reference[0] + kSlack || top1 > reference[1] + kSlack;
    if (__any_sync(0xffffffffu, raise)) {
      const float by0 = raise_to(0, top0), by1 = raise_to(1, top1);
#pragma unroll
      for (int i = 0; i < kOut; ++i) out[i] *= (i >> 1 & 1) ? by1 : by0;
    }
    weigh(scores);
  }

  // The same where nothing has been accumulated yet.
  template <int kScores>
  __device__ void first(float (&scores)[kScores]) {
    raise_to(0, row_max(scores, 0) * scale_log2);
    raise_to(1, row_max(scores, 1) * scale_log2);
    weigh(scores);
  }

 private:
  template <int kScores>
  static __device__ float row_max(const float (&scores)[kScores], int row) {
    float top = fmaxf(scores[2 * row], scores[2 * row + 1]);
#pragma unroll
    for (int i = 1; i < kScores / 4; ++i) {
      top = fmaxf(top, fmaxf(scores[4 * i + 2 * row], scores[4 * i + 2 * row + 1]));
    }
    return top;
  }

  // The factor of what was accumulated under the old reference.
  __device__ float raise_to(int row, float lane_top) {
    const float top = fmaxf(quad_max(lane_top), reference[row]);
    const float factor = exp2_approximate(reference[row] - top);
    reference[row] = top;
    sum[row] *= factor;
    return factor;
  }

  template <int kScores>
  __device__ void weigh(float (&scores)[kScores]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float even = 0.0f, odd = 0.0f;
#pragma unroll
      for (int i = 0; i < kScores / 4; ++i) {
        float& a = scores[4 * i + 2 * row];
        float& b = scores[4 * i + 2 * row + 1];
        a = exp2_approximate(fmaf(a, scale_log2, -reference[row]));
        b = exp2_approximate(fmaf(b, scale_log2, -reference[row]));
        even += a;
        odd += b;
      }
      sum[row] += even + odd;
    }
  }
};

}  // namespace chipmunk::cuda
