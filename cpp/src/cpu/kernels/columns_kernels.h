// The loops of the column ops, one set per instruction set. C headers only.
#pragma once

#include <stdint.h>

namespace chipmunk::cpu {

enum class ScoreType : uint8_t { kFloat32, kBFloat16, kFloat16 };

// A score's rank: greater for greater scores, equal for equal ones (-0 and 0 among them); NaN ranks
// as -inf does. No score has one of these two:
inline constexpr uint32_t kRankBelowAll = 0;
inline constexpr uint32_t kRankAboveAll = UINT32_MAX;

struct ColumnsKernels {
  // ranks[j] of scores[j * stride], j in [0, n).
  void (*rank_scores)(ScoreType type, const void* scores, int64_t stride, int64_t n,
                      uint32_t* ranks);
  // chosen[j] = ranks[j] > threshold, and the first `ties` columns that equal it.
  void (*choose_above)(const uint32_t* ranks, int64_t n, uint32_t threshold, int64_t ties,
                       uint8_t* chosen);
  // Writes the positions j where mask[j * stride] is not 0, ascending, until `capacity` are
  // written; their number.
  int64_t (*list_mask)(const uint8_t* mask, int64_t stride, int64_t n, int64_t capacity,
                       int32_t* positions);
};

}  // namespace chipmunk::cpu
