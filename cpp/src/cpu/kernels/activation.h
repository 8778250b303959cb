// Activations of a vector of floats, within a few ulp, and the exponential under them. Infinities
// and NaNs come out as the formulas give them. C headers only, internal linkage.
#pragma once

#include "cpu/kernels/mlp_kernels.h"
#include "cpu/kernels/vector.h"

namespace chipmunk::cpu {
namespace {

// e^x within 1 ulp; denormal, 0 and infinite results included. x = n ln 2 + r; e^r by the
// polynomial with the least relative error on [-ln 2 / 2, ln 2 / 2] (2e-9).
inline Vf exp(Vf x) {
  x = x < -104.0f ? broadcast(-104.0f) : x;
  x = x > 104.0f ? broadcast(104.0f) : x;
  const Vf shift = broadcast(0x1.8p23f);  // the sum's low bits are those of n
  const Vf sum = x * 0x1.715476p0f + shift;
  const Vf n = sum - shift;
  Vf r = x - n * 0x1.62e4p-1f;  // ln 2 to 15 bits: n times it is exact
  r = r - n * 0x1.7f7d1cp-20f;  // the rest of ln 2
  Vf p = broadcast(0x1.6ab8c2p-10f);
  p = p * r + 0x1.126dbep-7f;
  p = p * r + 0x1.55589ep-5f;
  p = p * r + 0x1.55540ap-3f;
  p = p * r + 0x1.fffffap-2f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n in two factors: one alone cannot reach denormals and infinity.
  const Vi exponent = (Vi)sum - (Vi)shift;
  const Vi half = exponent >> 1;
  return p * (Vf)((half + 127) << 23) * (Vf)((exponent - half + 127) << 23);
}

inline Vf silu(Vf x) { return x / (1.0f + exp(-x)); }

// x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as x / (1 + e^-2u): the same number,
// without the cancellation on the left.
inline Vf gelu_tanh(Vf x) {
  const Vf minus_2u = x * (x * x * -0x1.2444f2p-4f - 0x1.988454p0f);
  return x / (1.0f + exp(minus_2u));
}

// x P(X < x), X standard normal. Near 0, P = 1/2 + x Q(x^2) with Q minimax on [0, 1] (7e-10).
// Beyond, the tail P(X > |x|) = e^(-x^2/2) t R(t), t = 1 / (1 + |x| / 4), R minimax on [1, 14]
// (2e-8).
inline Vf gelu(Vf x) {
  const Vf square = x * x;
  Vf q = broadcast(-0x1.00d528p-17f);
  q = q * square + 0x1.dbff1p-14f;
  q = q * square - 0x1.36fd42p-10f;
  q = q * square + 0x1.46ce4cp-7f;
  q = q * square - 0x1.105832p-4f;
  q = q * square + 0x1.988454p-2f;
  const Vf near = q * x + 0.5f;

  const Vf magnitude = x < 0.0f ? -x : x;
  const Vf t = 1.0f / (magnitude * 0.25f + 1.0f);
  Vf p = broadcast(-0x1.7c19ap-5f);
  p = p * t + 0x1.bafd3p-4f;
  p = p * t - 0x1.56e28ap-6f;
  p = p * t + 0x1.75cacc0p-4f;
  p = p * t + 0x1.2f01bep-4f;
  p = p * t + 0x1.831756p-4f;
  p = p * t + 0x1.983e6ep-4f;
  p = p * t + 0x1.98856ep-4f;
  const Vf tail = p * t * exp(square * -0.5f);
  const Vf far = x > 0.0f ? 1.0f - tail : tail;
  return x * (magnitude < 1.0f ? near : far);
}

inline Vf relu(Vf x) { return x < 0.0f ? Vf{} : x; }

template <MlpActivation kActivation>
inline Vf activate(Vf x) {
  if constexpr (kActivation == MlpActivation::kGeluTanh) return gelu_tanh(x);
  if constexpr (kActivation == MlpActivation::kGelu) return gelu(x);
  if constexpr (kActivation == MlpActivation::kSilu) return silu(x);
  if constexpr (kActivation == MlpActivation::kRelu) return relu(x);
}

}  // namespace
}  // namespace chipmunk::cpu
