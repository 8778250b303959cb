// Scores as integers: keys that order like the scores, and weights that add without rounding.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace chipmunk::cuda {

// The bits of a floating-point score type.
template <class Score>
struct ScoreFormat;

template <>
struct ScoreFormat<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23, kBits = 32, kBias = 127;
};

template <>
struct ScoreFormat<__nv_bfloat16> {
  using Bits = uint16_t;
  static constexpr int kMantissaBits = 7, kBits = 16, kBias = 127;
};

template <>
struct ScoreFormat<__half> {
  using Bits = uint16_t;
  static constexpr int kMantissaBits = 10, kBits = 16, kBias = 15;
};

// Keys have ScoreFormat::kBits bits. A greater score has a greater key; NaN counts as -inf, and the
// two zeros are one.
template <class Score>
__device__ uint32_t score_key(typename ScoreFormat<Score>::Bits bits) {
  using Format = ScoreFormat<Score>;
  constexpr uint32_t kSign = 1u << (Format::kBits - 1);
  constexpr uint32_t kAll = kSign | (kSign - 1);
  constexpr uint32_t kInfinity = kSign - (1u << Format::kMantissaBits);
  uint32_t b = bits;
  if ((b & ~kSign) > kInfinity) b = kSign | kInfinity;
  if (b == kSign) b = 0;
  return (b & kSign) != 0 ? ~b & kAll : b | kSign;
}

// The weight of a score is the score, or 0 if that is negative or NaN. All scores whose keys agree
// in the bits above the mantissa share one unit; a weight is `weight_units(key)` of them, below
// 2^24, so that integers hold the sum of a row's weights in one such bin.
template <class Score>
__device__ bool has_weight(uint32_t key) {
  return (key >> (ScoreFormat<Score>::kBits - 1)) != 0;
}

template <class Score>
__device__ uint32_t exponent_of(uint32_t key) {
  using Format = ScoreFormat<Score>;
  constexpr uint32_t kMask = (1u << (Format::kBits - 1 - Format::kMantissaBits)) - 1;
  return (key >> Format::kMantissaBits) & kMask;
}

template <class Score>
__device__ uint32_t weight_units(uint32_t key) {
  constexpr uint32_t kOne = 1u << ScoreFormat<Score>::kMantissaBits;
  return (key & (kOne - 1)) | (exponent_of<Score>(key) != 0 ? kOne : 0);
}

// The sum of `count` weights whose units add up to `units`; `key` is any of their keys.
template <class Score>
__device__ double weight_sum(uint32_t key, uint32_t count, uint64_t units) {
  using Format = ScoreFormat<Score>;
  if (count == 0 || !has_weight<Score>(key)) return 0.0;
  const int exponent = static_cast<int>(exponent_of<Score>(key));
  constexpr int kInfinite = 2 * Format::kBias + 1;
  if (exponent == kInfinite) return __longlong_as_double(0x7ff0000000000000);
  const int scale = max(exponent, 1) - Format::kBias - Format::kMantissaBits;
  return static_cast<double>(units) * __longlong_as_double((scale + 1023LL) << 52);
}

// One step of the splitmix64 generator from state x: a bijection.
__device__ inline uint64_t splitmix64(uint64_t x) {
  uint64_t z = x + 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

}  // namespace chipmunk::cuda
