// 2^x for a vector. C headers only, internal linkage.
#pragma once

#include "cpu/kernels/vector.h"

namespace chipmunk::cpu {
namespace {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;

// b where either is NaN.
inline Vf max(Vf a, Vf b) { return a > b ? a : b; }
inline Vf min(Vf a, Vf b) { return a < b ? a : b; }

// Within 2 ulp; results below 2^-126 are 0, NaN stays NaN, exp2(-inf) = 0, exp2(inf) = inf.
// 2^x = 2^n 2^f with n the integer nearest to x; 2^f by the polynomial of degree 6 with the least
// relative error on [-1/2, 1/2] (2e-9) among those that give 1 at 0.
inline Vf exp2(Vf x) {
  x = max(broadcast(-127.0f), x);
  x = min(broadcast(128.0f), x);
  // The sum's low bits hold n + 127: the exponent field of 2^n, 0 for n = -127, inf's for n = 128.
  const Vf shift = broadcast(0x1.8p23f + 127.0f);
  const Vf sum = x + shift;
  const Vf f = x - (sum - shift);
  Vf p = broadcast(0x1.41fbbcp-13f);
  p = p * f + 0x1.5f3e54p-10f;
  p = p * f + 0x1.3b2d4cp-7f;
  p = p * f + 0x1.c6aee8p-5f;
  p = p * f + 0x1.ebfbdcp-3f;
  p = p * f + 0x1.62e430p-1f;
  p = p * f + 1.0f;
  return p * (Vf)((Vi)sum << 23);
}

}  // namespace
}  // namespace chipmunk::cpu
