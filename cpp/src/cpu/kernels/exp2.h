// 2^x for vectors. C headers only, internal linkage.
#pragma once

#include "cpu/kernels/vector.h"

namespace chipmunk::cpu {
namespace {

inline constexpr float kLog2E = 1.44269504088896340736f;

// x[..] becomes 2^x. Within 2 ulp; results below 2^-126 are 0, NaN stays NaN, exp2(-inf) = 0,
// exp2(inf) = inf. 2^x = 2^n 2^f with n the integer nearest to x; 2^f by the polynomial of degree 6
// with the least relative error on [-1/2, 1/2] (2e-9) among those that give 1 at 0.
//
// The vectors go step by step together: one after the other, each is a chain of 16 dependent
// instructions, and few such chains fit into a core's scheduler. Always inlined: a call would send
// the vectors through memory.
template <int N>
__attribute__((always_inline)) inline void exp2_together(Vf (&x)[N]) {
  const Vf shift = broadcast(0x1.8p23f + 127.0f);
  Vf n[N], p[N];
  for (Vf& v : x) v = max(broadcast(-127.0f), v);
  for (Vf& v : x) v = min(broadcast(128.0f), v);
  // The sum's low bits hold n + 127: the exponent field of 2^n, 0 for n = -127, inf's for n = 128.
  for (int i = 0; i < N; ++i) n[i] = x[i] + shift;
  for (int i = 0; i < N; ++i) p[i] = n[i] - shift;
  for (int i = 0; i < N; ++i) x[i] = x[i] - p[i];
  for (int i = 0; i < N; ++i) n[i] = (Vf)((Vi)n[i] << 23);
  for (int i = 0; i < N; ++i) p[i] = x[i] * 0x1.41fbbcp-13f + 0x1.5f3e54p-10f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 0x1.3b2d4cp-7f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 0x1.c6aee8p-5f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 0x1.ebfbdcp-3f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 0x1.62e430p-1f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 1.0f;
  for (int i = 0; i < N; ++i) x[i] = p[i] * n[i];
}

}  // namespace
}  // namespace chipmunk::cpu
