// Online softmax of the two rows that a thread holds of an accumulator (accumulator.cuh).
#pragma once

#include <cuda_fp16.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

namespace chipmunk::cuda {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;

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
// A sum of 0: every score was -inf, and there was no rest.
__device__ __forceinline__ float reciprocal_of_sum(float sum) {
  return sum == 0.0f ? 0.0f : reciprocal_approximate(sum);
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
//
// A reference from kHuge on is no longer a good one: half an ulp of it is an octave of weight and
// more. A warp that meets one, or that raises one, turns to exact weights, exp2(scale_log2 * (score
// - reference)), whose reference is a score and not scaled. They cost one instruction a score more.
struct OnlineSoftmax {
  static constexpr float kHuge = 0x1p24f;

  float scale_log2;
  float reference[2];  // equal in a quad
  float sum[2];        // of this lane's columns; after finish() of the quad's
  bool exact;          // equal in a warp

  // Takes the reference from the first scores.
  template <int kScores>
  __device__ void start(const float (&scores)[kScores]) {
    float top[2];
    quad_max_of(scores, top);
    reference[0] = fmaxf(top[0] * scale_log2, -FLT_MAX);
    reference[1] = fmaxf(top[1] * scale_log2, -FLT_MAX);
    exact = any_huge(reference);
    if (exact) reference[0] = fmaxf(top[0], -FLT_MAX), reference[1] = fmaxf(top[1], -FLT_MAX);
  }

  // Turns a tile's scores into weights, by the reference as it is; `part` is what to add to `sum`.
  template <int kScores>
  __device__ void weigh(float (&scores)[kScores], float (&part)[2]) const {
    float offset[2] = {reference[0], reference[1]};
    if (exact) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) scores[i] -= reference[i >> 1 & 1];
      offset[0] = offset[1] = 0.0f;
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float even, odd;
#pragma unroll
      for (int i = 0; i < kScores / 4; ++i) {
        float& a = scores[4 * i + 2 * row];
        float& b = scores[4 * i + 2 * row + 1];
        a = exp2_approximate(fmaf(a, scale_log2, -offset[row]));
        b = exp2_approximate(fmaf(b, scale_log2, -offset[row]));
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

  // Raises the reference to a tile's maximum before it is weighed, exactly from then on; what was
  // accumulated under the old one is to be multiplied by `factor`.
  template <int kScores>
  __device__ void raise(const float (&scores)[kScores], float (&factor)[2]) {
    float tops[2];
    quad_max_of(scores, tops);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float old = reference[row];
      // Off by some 2^-22 of itself, for which the factor makes up. Not finite where the scale is
      // 0, but then no finite score gets here.
      const float old_score = exact ? old : old * reciprocal_approximate(scale_log2);
      const float score = fmaxf(fmaxf(tops[row], old_score), -FLT_MAX);
      factor[row] =
          exp2_approximate(exact ? (old - score) * scale_log2 : fmaf(-score, scale_log2, old));
      if (old == -FLT_MAX) factor[row] = 0.0f;  // no score yet
      reference[row] = score;
      sum[row] *= factor[row];
    }
    exact = true;
  }

  // Behind a tile's last weights, before `lse` and `merge`.
  __device__ void finish() { quad_sum(sum); }

  // What the reference counts in, as a natural logarithm; `scale` is scale_log2 * ln 2.
  __device__ float unit(float scale) const { return exact ? scale : kLn2; }
  // The natural logarithm of a row's sum of exponentials. -inf for a sum of 0: every score was
  // -inf. Any other sum holds a weight of some 1.
  __device__ static float lse(float reference, float sum, float unit) {
    return fmaf(reference, unit, kLn2 * log2_approximate(sum));
  }

  // Takes in a rest whose sum of exponentials is exp(rest_lse), -inf for none: what the row of the
  // result takes of the output accumulated so far, and of the rest's. `unit` is then 1 where
  // weights are exact.
  __device__ void merge(int row, float rest_lse, float scale, float& own, float& rest) {
    float mine = reference[row], theirs = rest_lse * kLog2E, octaves = 1.0f, normal = 1.0f;
    bool overflows = false;
    if (exact) {
      mine = lse(reference[row], sum[row], scale);
      // It outweighs every rest whose lse is finite, as the lse that comes out of it is not.
      overflows = mine > FLT_MAX;
      if (overflows) mine = FLT_MAX;
      theirs = rest_lse;
      octaves = kLog2E;
      normal = reciprocal_of_sum(sum[row]);
      sum[row] = sum[row] == 0.0f ? 0.0f : 1.0f;
    }
    const float top = fmaxf(fmaxf(mine, theirs), -FLT_MAX);
    own = exp2_approximate((mine - top) * octaves);
    rest = exp2_approximate((theirs - top) * octaves);
    sum[row] = fmaf(sum[row], own, rest);
    reference[row] = overflows ? INFINITY : top;
    const float reciprocal = reciprocal_of_sum(sum[row]);
    own *= reciprocal * normal;
    rest *= reciprocal;
  }

 private:
  // -FLT_MAX stands for no score yet.
  static __device__ bool any_huge(const float (&reference)[2]) {
    const bool mine = (fabsf(reference[0]) >= kHuge && reference[0] != -FLT_MAX) ||
                      (fabsf(reference[1]) >= kHuge && reference[1] != -FLT_MAX);
    return __any_sync(0xffffffffu, mine) != 0;
  }

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
