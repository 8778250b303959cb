// How the MLP's loops hold the factors that they multiply: as vectors of 4-byte words. A word is a
// float, or, where the instruction set multiplies them, a pair of bfloat16 that are neighbours
// along the summed dimension. C headers only, internal linkage.
#pragma once

#include "cpu/kernels/bf16.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace chipmunk::cpu {
namespace {

// Words of one element, widened.
template <class T>
struct FloatWords {
  typedef T Type;
  typedef typename T::Storage Storage;
  static constexpr int kElements = 1;
  static constexpr bool kWholeRows = sizeof(Storage) == sizeof(float);

  static Vf broadcast_word(const void* words, int64_t i) {
    return broadcast(((const float*)words)[i]);
  }
  static Vf multiply_add(Vf sum, Vf a, Vf b) { return sum + a * b; }

  // Up to kLanes words from the first `left` elements at `p`, zeros beyond.
  static Vf load_words(const Storage* p, int64_t left) {
    return left >= kLanes ? T::load(p) : load_first<T>(p, (int)left);
  }
  // Words of a row as the loops read them: the row itself or, if it does not serve, a copy.
  static const void* row_words(const Storage* row, int64_t count, float* copy) {
    if constexpr (kWholeRows) return row;
    stack_rows(&row, 1, count, copy);
    return copy;
  }
  // words[i] = element i of the only row.
  static void stack_rows(const Storage* const* rows, int /*present*/, int64_t count, float* words) {
    const int64_t whole = count - count % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) store(words + i, T::load(rows[0] + i));
    for (int64_t i = whole; i < count; ++i) words[i] = T::widen(rows[0][i]);
  }
};

#if defined(__AVX512BF16__)

struct BFloat16Pairs {
  typedef BFloat16 Type;
  typedef uint16_t Storage;
  static constexpr int kElements = 2;

  static Vf broadcast_word(const void* words, int64_t i) {
    int32_t word;
    memcpy(&word, (const char*)words + i * (int64_t)sizeof(word), sizeof(word));
    return (Vf)(word - Vi{});
  }
  static Vf multiply_add(Vf sum, Vf a, Vf b) {
    return (Vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
  static Vf load_words(const Storage* p, int64_t left) {
    Vf words = {};
    if (left >= 2 * kLanes) {
      memcpy(&words, p, sizeof(words));
    } else {
      memcpy(&words, p, (size_t)left * sizeof(Storage));
    }
    return words;
  }
  static const void* row_words(const Storage* row, int64_t count, float* copy) {
    if (count % 2 == 0) return row;
    memcpy(copy, row, (size_t)count * sizeof(Storage));
    ((Storage*)copy)[count] = 0;
    return copy;
  }
  // words[i] = elements i of the two rows; zero for the second if only one is present.
  static void stack_rows(const Storage* const* rows, int present, int64_t count, float* words) {
    const Storage* second = present > 1 ? rows[1] : nullptr;
    const int64_t whole = count - count % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
      Vh low, high = {};
      memcpy(&low, rows[0] + i, sizeof(low));
      if (second != nullptr) memcpy(&high, second + i, sizeof(high));
      store(words + i, (Vf)(widen(low) | widen(high) << 16));
    }
    for (int64_t i = whole; i < count; ++i) {
      const uint32_t high = second == nullptr ? 0 : second[i];
      const uint32_t word = rows[0][i] | high << 16;
      memcpy(words + i, &word, sizeof(word));
    }
  }
};
typedef BFloat16Pairs BFloat16Words;

#else

typedef FloatWords<BFloat16> BFloat16Words;

#endif

}  // namespace
}  // namespace chipmunk::cpu
