// Which tiles a CTA takes, and when. Plain C++, so that machines without a GPU test it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "params/column_order.h"

namespace chipmunk::cuda {

// Some of the blocks of 64 rows of a query group.
struct Blocks {
  int32_t first, count;
};

// The blocks of a list's part, of a group of `blocks`.
constexpr Blocks blocks_of(ListPart part, int32_t blocks) {
  const int32_t first = part == ListPart::kFromRow128 ? std::min(2, blocks) : 0;
  const int32_t end = part == ListPart::kFirst128Rows ? std::min(2, blocks) : blocks;
  return {first, end - first};
}

// A tile or a part of one.
struct Item {
  int32_t tile;  // -1: none
  ListPart part;
};

// Without an order, CTA b takes the tiles b, b + grid, ... The tiles of a last round may be split
// in two: `split` CTAs take the first 128 rows of a tile each, and others the rows behind them.
struct Rounds {
  int32_t whole;  // tiles before those that are split; if any are, a multiple of the grid
  int32_t split;

  constexpr int32_t ctas(int32_t multiprocessors) const {
    return std::min(multiprocessors, whole + 2 * split);
  }
  // What a CTA takes in its n-th round.
  constexpr Item item(int32_t cta, int32_t n, int32_t grid) const {
    const int32_t number = cta + n * grid, beyond = number - whole;
    if (beyond < 0) return {number, ListPart::kWhole};
    if (beyond < split) return {number, ListPart::kFirst128Rows};
    if (beyond < 2 * split) return {number - split, ListPart::kFromRow128};
    return {-1, ListPart::kWhole};
  }
};

// Two parts take two CTAs, so a last round is split where it leaves half of them idle.
constexpr Rounds rounds(int32_t tiles, int32_t multiprocessors, bool may_split) {
  const int32_t left = tiles % multiprocessors;
  if (!may_split || 2 * left > multiprocessors) return {tiles, 0};
  return {tiles - left, left};
}

}  // namespace chipmunk::cuda
