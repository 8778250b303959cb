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

__device__ inline float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float log2_approximate(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Over a quad, for both rows at once: a shuffle takes some 100 cycles.
__device__ inline void quad_max(float (&x)[2]) {
#pragma unroll
  for (int lane = 1; lane <= 2; lane *= 2) {
    const float other[2] = {__shfl_xor_sync(0xffffffffu, x[0], lane),
                            __shfl_xor_sync(0xffffffffu, x[1], lane)};
    x[0] = fmaxf(x[0], other[0]), x[1] = fmaxf(x[1], other[1]);
  }
}
__device__ inline void quad_sum(float (&x)[2]) {
#pragma unroll
  for (int lane = 1; lane <= 2; lane *= 2) {
    const float other[2] = {__shfl_xor_sync(0xffffffffu, x[0], lane),
                            __shfl_xor_sync(0xffffffffu, x[1], lane)};
    x[0] += other[0], x[1] += other[1];
  }
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

// The greatest sum of a lane's weights in one tile under an old reference. bfloat16 has float's
// exponents: any reference serves, as long as the sums of products stay far from overflow.
template <class Element>
inline constexpr float kMostWeight = 0x1p32f;
template <>
inline constexpr float kMostWeight<__half> = 0x1p15f;

// The weights are exp2(scale_log2 * score - reference). Any reference gives the same quotient; a
// row's is the maximum of its first tile, raised to that of a later one only where weights would
// pass kMostWeight, so that its sum cannot vanish. It is at least -FLT_MAX: a score of -inf weighs
// 0 whatever came before.
struct OnlineSoftmax {
  float scale_log2;
  float reference[2];  // equal in a quad
  float sum[2];        // of this lane's columns; after finish() of the quad's

  // Turns a tile's scores into weights, by the reference as it is; `part` is what to add to `sum`.
  template <int kScores>
  __device__ void weigh(float (&scores)[kScores], float (&part)[2]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float even, odd;
#pragma unroll
      for (int i = 0; i < kScores / 4; ++i) {
        float& a = scores[4 * i + 2 * row];
        float& b = scores[4 * i + 2 * row + 1];
        a = exp2_approximate(fmaf(a, scale_log2, -reference[row]));
        b = exp2_approximate(fmaf(b, scale_log2, -reference[row]));
        even = i == 0 ? a : even + a;
        odd = i == 0 ? b : odd + b;
      }
      part[row] = even + odd;
    }
  }

  __device__ void add(const float (&part)[2]) {
    sum[0] += part[0];
    sum[1] += part[1];
  }

  // Takes the reference from the first scores.
  template <int kScores>
  __device__ void start(const float (&scores)[kScores]) {
    float top[2];
    quad_max_of(scores, top);
#pragma unroll
    for (int row = 0; row < 2; ++row) reference[row] = fmaxf(top[row] * scale_log2, -FLT_MAX);
  }

  // Raises the reference to a tile's maximum before it is weighed; what was accumulated under the
  // old one is to be multiplied by `factor`.
  template <int kScores>
  __device__ void raise(const float (&scores)[kScores], float (&factor)[2]) {
    float tops[2];
    quad_max_of(scores, tops);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float top = fmaxf(tops[row] * scale_log2, reference[row]);
      factor[row] = exp2_approximate(reference[row] - top);
      reference[row] = top;
      sum[row] *= factor[row];
    }
  }

  // Behind a tile's last weights, before add_sum and what follows it.
  __device__ void finish() { quad_sum(sum); }

  // Takes in sums of other keys, under a reference of their own: what was accumulated is to be
  // multiplied by `own`, and the others' output by `other` and added.
  __device__ void add_sum(int row, float their_reference, float their_sum, float& own,
                          float& other) {
    const float top = fmaxf(reference[row], their_reference);
    own = exp2_approximate(reference[row] - top);
    other = exp2_approximate(their_reference - top);
    sum[row] = fmaf(sum[row], own, their_sum * other);
    reference[row] = top;
  }
  // The same for a part whose sum of exponentials is 2^lse_log2, -inf for none.
  __device__ void add_part(int row, float lse_log2, float& own, float& other) {
    add_sum(row, lse_log2, 1.0f, own, other);
  }

  // -inf for a sum of 0: every score was -inf. Any other sum holds a weight of some 1.
  __device__ float lse_log2(int row) const { return reference[row] + log2_approximate(sum[row]); }

 private:
  template <int kScores>
  static __device__ void quad_max_of(const float (&scores)[kScores], float (&top)[2]) {
    top[0] = fmaxf(scores[0], scores[1]), top[1] = fmaxf(scores[2], scores[3]);
#pragma unroll
    for (int i = 1; i < kScores / 4; ++i) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        top[row] = fmaxf(top[row], fmaxf(scores[4 * i + 2 * row], scores[4 * i + 2 * row + 1]));
      }
    }
    quad_max(top);
  }
};

}  // namespace chipmunk::cuda
