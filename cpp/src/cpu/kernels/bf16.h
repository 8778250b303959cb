// The three element types as vectors of float: loads widen exactly, stores round to nearest even.
// NaN stays NaN, denormals keep their value whatever the FTZ and DAZ flags say for 16-bit types.
// C headers only, internal linkage.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/kernels/vector.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace chipmunk::cpu {
namespace {

typedef uint16_t Vh __attribute__((vector_size(kLanes * 2)));
typedef uint32_t Vu __attribute__((vector_size(kLanes * 4)));

// The scalar and vector forms of each conversion are one template: Float is float or Vf, Word the
// unsigned type of the same shape, Half the 16-bit one.
template <class To, class From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

inline Vu select(Vi mask, Vu yes, Vu no) {
  const Vu m = (Vu)mask;
  return (yes & m) | (no & ~m);
}
inline uint32_t select(bool mask, uint32_t yes, uint32_t no) { return mask ? yes : no; }

inline Vu widen(Vh h) { return __builtin_convertvector(h, Vu); }
inline Vh narrow(Vu w) { return __builtin_convertvector(w, Vh); }

template <class Word>
inline Word bf16_round(Word x) {
  const Word rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
  const Word quiet_nan = (x >> 16) | 0x40u;
  return select((x & 0x7fffffffu) > 0x7f800000u, quiet_nan, rounded);
}

// `h` zero-extended.
template <class Float, class Word>
inline Float f16_widen(Word h) {
  const Word magnitude = (h & 0x7fffu) << 13;
  const Word normal = magnitude + (112u << 23);
  const Word inf_or_nan = magnitude | 0x7f800000u;
  // 2^-14 (1 + m) - 2^-14 is exact and needs no float denormal.
  const Float tiny = bits_as<Float>(magnitude + (113u << 23)) - 0x1p-14f;
  Word w = select(magnitude < (1u << 23), bits_as<Word>(tiny), normal);
  w = select(magnitude >= (31u << 23), inf_or_nan, w);
  return bits_as<Float>(w | ((h & 0x8000u) << 16));
}

template <class Float, class Word>
inline Word f16_round(Float f) {
  const Word x = bits_as<Word>(f);
  const Word magnitude = x & 0x7fffffffu;
  // Adding 0.5 rounds at bit 2^-24, the unit of float16's denormals.
  const Word tiny = bits_as<Word>(bits_as<Float>(magnitude) + 0.5f) - 0x3f000000u;
  const Word normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Word quiet_nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  Word h = select(magnitude < 0x38800000u, tiny, normal);
  h = select(magnitude >= 0x47800000u, Word{} + 0x7c00u, h);
  h = select(magnitude > 0x7f800000u, quiet_nan, h);
  return h | ((x >> 16) & 0x8000u);
}

// How a dtype is kept in memory and worked on. `load` and `store` move kLanes elements.
struct Float32 {
  typedef float Storage;
  static constexpr float epsilon = 0x1p-23f;  // from 1 to the next number
  static float widen(Storage x) { return x; }
  static Storage round(float x) { return x; }
  static Vf load(const Storage* p) { return cpu::load(p); }
  static void store(Storage* p, Vf v) { cpu::store(p, v); }
};

struct BFloat16 {
  typedef uint16_t Storage;
  static constexpr float epsilon = 0x1p-7f;  // from 1 to the next number
  static float widen(Storage x) { return bits_as<float>((uint32_t)x << 16); }
  static Storage round(float x) { return (Storage)bf16_round(bits_as<uint32_t>(x)); }
  static Vf load(const Storage* p) {
    Vh h;
    memcpy(&h, p, sizeof(h));
    return (Vf)(cpu::widen(h) << 16);
  }
  static void store(Storage* p, Vf v) {
    const Vh h = narrow(bf16_round((Vu)v));
    memcpy(p, &h, sizeof(h));
  }
};

struct Float16 {
  typedef uint16_t Storage;
  static constexpr float epsilon = 0x1p-10f;  // from 1 to the next number
  static float widen(Storage x) { return f16_widen<float>((uint32_t)x); }
  static Storage round(float x) { return (Storage)f16_round<float, uint32_t>(x); }
#if defined(__AVX512F__)
  // The maskz forms: GCC 12 warns inside its own header about the plain ones.
  static Vf load(const Storage* p) {
    return (Vf)_mm512_maskz_cvtph_ps((__mmask16)-1, _mm256_loadu_si256((const __m256i*)p));
  }
  static void store(Storage* p, Vf v) {
    _mm256_storeu_si256((__m256i*)p,
                        _mm512_maskz_cvtps_ph((__mmask16)-1, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__F16C__)
  static Vf load(const Storage* p) {
    return (Vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }
  static void store(Storage* p, Vf v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static Vf load(const Storage* p) {
    Vh h;
    memcpy(&h, p, sizeof(h));
    return f16_widen<Vf>(cpu::widen(h));
  }
  static void store(Storage* p, Vf v) {
    const Vh h = narrow(f16_round<Vf, Vu>(v));
    memcpy(p, &h, sizeof(h));
  }
#endif
};

// The first n elements, n < kLanes; the other lanes are 0, nothing past the n-th is touched.
template <class Type>
inline Vf load_first(const typename Type::Storage* p, int n) {
  typename Type::Storage whole[kLanes] = {};
  memcpy(whole, p, (size_t)n * sizeof(whole[0]));
  return Type::load(whole);
}

template <class Type>
inline void store_first(typename Type::Storage* p, Vf v, int n) {
  typename Type::Storage whole[kLanes];
  Type::store(whole, v);
  memcpy(p, whole, (size_t)n * sizeof(whole[0]));
}

}  // namespace
}  // namespace chipmunk::cpu
