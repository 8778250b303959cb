// Vectors of floats as wide as the instruction set, from compiler vector extensions. C headers
// only, and everything with internal linkage: each instruction set compiles its own copy.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace chipmunk::cpu {
namespace {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
inline constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
inline constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
inline constexpr int kLanes = 4;
inline constexpr int kVectorRegisters = 32;
#else
inline constexpr int kLanes = 4;
inline constexpr int kVectorRegisters = 16;
#endif

typedef float Vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t Vi __attribute__((vector_size(kLanes * 4)));

inline Vf load(const float* p) {
  Vf v;
  memcpy(&v, p, sizeof(v));
  return v;
}

inline void store(float* p, Vf v) { memcpy(p, &v, sizeof(v)); }

inline Vf broadcast(float x) { return x - Vf{}; }

// b where either is NaN, as x86 has it in one instruction; from the ternary GCC makes two. With
// AVX-512, GCC 12 warns of the intrinsics without a mask.
#if defined(__AVX512F__)
inline constexpr uint16_t kAllLanes = 0xffff;
inline Vf max(Vf a, Vf b) { return (Vf)_mm512_maskz_max_ps(kAllLanes, (__m512)a, (__m512)b); }
inline Vf min(Vf a, Vf b) { return (Vf)_mm512_maskz_min_ps(kAllLanes, (__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline Vf max(Vf a, Vf b) { return (Vf)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vf min(Vf a, Vf b) { return (Vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline Vf max(Vf a, Vf b) { return a > b ? a : b; }
inline Vf min(Vf a, Vf b) { return a < b ? a : b; }
#endif

}  // namespace
}  // namespace chipmunk::cpu
