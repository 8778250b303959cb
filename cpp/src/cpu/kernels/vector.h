// Vectors of floats as wide as the instruction set, from compiler vector extensions. C headers
// only, and everything with internal linkage: each instruction set compiles its own copy.
#pragma once

#include <stdint.h>
#include <string.h>

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

}  // namespace
}  // namespace chipmunk::cpu
