// Activations of vectors of floats, within a few ulp, and the exponential under them. Infinities
// and NaNs come out as the formulas give them. C headers only, internal linkage.
//
// All take N vectors step by step together: one after the other, each is a chain of some 30
// dependent instructions, and few such chains fit into a core's scheduler.
#pragma once

#include "cpu/kernels/mlp_kernels.h"
#include "cpu/kernels/vector.h"

namespace chipmunk::cpu {
namespace {

// e^x within 1 ulp; denormal, 0 and infinite results included. x = n ln 2 + r; e^r by the
// polynomial with the least relative error on [-ln 2 / 2, ln 2 / 2] (2e-9).
template <int N>
inline void exp_together(Vf (&x)[N]) {
  const Vf shift = broadcast(0x1.8p23f);  // the sum's low bits are those of n
  Vf n[N], p[N];
  for (Vf& v : x) v = max(broadcast(-104.0f), v);
  for (Vf& v : x) v = min(broadcast(104.0f), v);
  for (int i = 0; i < N; ++i) n[i] = x[i] * 0x1.715476p0f + shift;
  for (int i = 0; i < N; ++i) p[i] = n[i] - shift;
  for (int i = 0; i < N; ++i) x[i] = x[i] - p[i] * 0x1.62e4p-1f;     // ln 2 to 15 bits: exact
  for (int i = 0; i < N; ++i) x[i] = x[i] - p[i] * 0x1.7f7d1cp-20f;  // the rest of ln 2
  for (int i = 0; i < N; ++i) p[i] = x[i] * 0x1.6ab8c2p-10f + 0x1.126dbep-7f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 0x1.55589ep-5f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 0x1.55540ap-3f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 0x1.fffffap-2f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 1.0f;
  for (int i = 0; i < N; ++i) p[i] = p[i] * x[i] + 1.0f;
  for (int i = 0; i < N; ++i) {
    // 2^n in two factors: one alone cannot reach denormals and infinity.
    const Vi exponent = (Vi)n[i] - (Vi)shift;
    const Vi half = exponent >> 1;
    x[i] = p[i] * (Vf)((half + 127) << 23) * (Vf)((exponent - half + 127) << 23);
  }
}

// x / d for d >= 1, infinity included, within 1 ulp. AVX-512's division takes 16 cycles a vector.
inline Vf quotient(Vf x, Vf d) {
#if defined(__AVX512F__)
  const Vf r = (Vf)_mm512_maskz_rcp14_ps(kAllLanes, (__m512)d);
  // Newton's step. Where d is infinite, r is 0 and the error NaN; max takes the -1 then.
  const Vf error = max(1.0f - d * r, broadcast(-1.0f));
  const Vf inverse = r * error + r;
  // What the product's rounding lost comes back, unless x or d is infinite.
  const __m512 q = (__m512)(x * inverse);
  const __m512 left = (__m512)(x - (Vf)q * d);
  const __mmask16 finite = _mm512_cmp_ps_mask(left, left, _CMP_ORD_Q);
  return (Vf)_mm512_mask3_fmadd_ps(left, (__m512)inverse, q, finite);
#else
  return x / d;
#endif
}

template <int N>
inline void silu(Vf (&x)[N]) {
  Vf e[N];
  for (int i = 0; i < N; ++i) e[i] = -x[i];
  exp_together(e);
  for (int i = 0; i < N; ++i) x[i] = quotient(x[i], 1.0f + e[i]);
}

// x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as x / (1 + e^-2u): the same number,
// without the cancellation on the left.
template <int N>
inline void gelu_tanh(Vf (&x)[N]) {
  Vf e[N];  // -2u at first
  for (int i = 0; i < N; ++i) e[i] = x[i] * x[i] * -0x1.2444f2p-4f - 0x1.988454p0f;
  for (int i = 0; i < N; ++i) e[i] = x[i] * e[i];
  exp_together(e);
  for (int i = 0; i < N; ++i) x[i] = quotient(x[i], 1.0f + e[i]);
}

// x P(X < x), X standard normal. Near 0, P = 1/2 + x Q(x^2) with Q minimax on [0, 1] (7e-10).
// Beyond, the tail P(X > |x|) = e^(-x^2/2) t R(t), t = 1 / (1 + |x| / 4), R minimax on [1, 14]
// (2e-8).
template <int N>
inline void gelu(Vf (&x)[N]) {
  Vf e[N];
  for (int i = 0; i < N; ++i) e[i] = x[i] * x[i] * -0.5f;
  exp_together(e);
  for (int i = 0; i < N; ++i) {
    const Vf square = x[i] * x[i];
    Vf q = broadcast(-0x1.00d528p-17f);
    q = q * square + 0x1.dbff1p-14f;
    q = q * square - 0x1.36fd42p-10f;
    q = q * square + 0x1.46ce4cp-7f;
    q = q * square - 0x1.105832p-4f;
    q = q * square + 0x1.988454p-2f;
    const Vf near = q * x[i] + 0.5f;

    const Vf magnitude = x[i] < 0.0f ? -x[i] : x[i];
    const Vf t = quotient(broadcast(1.0f), magnitude * 0.25f + 1.0f);
    Vf p = broadcast(-0x1.7c19ap-5f);
    p = p * t + 0x1.bafd3p-4f;
    p = p * t - 0x1.56e28ap-6f;
    p = p * t + 0x1.75cacc0p-4f;
    p = p * t + 0x1.2f01bep-4f;
    p = p * t + 0x1.831756p-4f;
    p = p * t + 0x1.983e6ep-4f;
    p = p * t + 0x1.98856ep-4f;
    const Vf tail = p * t * e[i];
    const Vf far = x[i] > 0.0f ? 1.0f - tail : tail;
    x[i] = x[i] * (magnitude < 1.0f ? near : far);
  }
}

template <int N>
inline void relu(Vf (&x)[N]) {
  for (Vf& v : x) v = v < 0.0f ? Vf{} : v;
}

template <MlpActivation kActivation, int N>
inline void activate(Vf (&x)[N]) {
  if constexpr (kActivation == MlpActivation::kGeluTanh) gelu_tanh(x);
  if constexpr (kActivation == MlpActivation::kGelu) gelu(x);
  if constexpr (kActivation == MlpActivation::kSilu) silu(x);
  if constexpr (kActivation == MlpActivation::kRelu) relu(x);
}

}  // namespace
}  // namespace chipmunk::cpu
