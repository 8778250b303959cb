// Which tiles a CTA takes, and when. Plain C++, so that machines without a GPU test it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace chipmunk::cuda {

enum class Part : int32_t { kWhole, kLarge, kSmall };

// A tile or a part of one.
struct Item {
  int32_t tile;  // -1: none
  Part part;
};

// Lists of equal length: CTA b takes the items b, b + grid, ... The tiles of a last round may be
// split in two: `split` CTAs take a large part each, and the others the small ones.
struct Rounds {
  int32_t whole;  // tiles before those that are split; if any are, a multiple of the grid
  int32_t split;

  constexpr int32_t ctas(int32_t multiprocessors) const {
    return std::min(multiprocessors, whole + 2 * split);
  }
  // What a CTA takes in its n-th round.
  constexpr Item item(int32_t cta, int32_t n, int32_t grid) const {
    const int32_t number = cta + n * grid, beyond = number - whole;
    if (beyond < 0) return {number, Part::kWhole};
    if (beyond < split) return {number, Part::kLarge};
    // Once more around, by those without a large part.
    if (beyond >= grid && cta < split) return {-1, Part::kWhole};
    const int32_t small = beyond < grid ? beyond - split : beyond - 2 * split;
    if (small >= split) return {-1, Part::kWhole};
    return {whole + small, Part::kSmall};
  }
};

// A CTA may do `small_parts` small parts in the place of a tile; 0: tiles are not split.
constexpr Rounds rounds(int32_t tiles, int32_t multiprocessors, int32_t small_parts) {
  const int32_t left = tiles % multiprocessors;
  if ((small_parts + 1) * left > small_parts * multiprocessors) return {tiles, 0};
  return {tiles - left, left};
}

// Lists of two lengths, as where some rows attend to everything. Every CTA starts with the tile of
// its own number. Then the long tiles are dealt, and then the short ones, each to the CTA that is
// free first if a long tile takes as long as `ratio` short ones. Nothing is counted at run time:
// each CTA computes its own tiles, and the CTAs agree.
struct LongFirst {
  int32_t grid;  // CTAs; fewer than tiles
  int32_t tiles;
  int32_t long_starts;  // long ones among the first `grid` tiles
  int32_t long_later;   // and among the others
  int32_t ratio;

  // CTAs in the order in which they take more: those that start with a short tile, then the others.
  // `long_before` CTAs of a smaller number start with a long one.
  constexpr int32_t place(int32_t cta, bool starts_long, int32_t long_before) const {
    return starts_long ? grid - long_starts + long_before : cta - long_before;
  }
  // How many long tiles a place takes after its first; the i-th is number place + i * grid of them.
  constexpr int32_t long_tiles(int32_t place) const {
    return long_later / grid + (place < long_later % grid ? 1 : 0);
  }
  constexpr int32_t short_later() const { return tiles - grid - long_later; }
  // The number of the k-th short tile that a place takes after those, among the short ones that are
  // not a first tile; there may be fewer.
  constexpr int32_t short_tile(int32_t place, int32_t k) const {
    const int32_t short_starts = grid - long_starts, one_more = long_later % grid;
    const int32_t cuts[4] = {0, std::min(short_starts, one_more), std::max(short_starts, one_more),
                             grid};
    const int32_t time = free_at(place) + k;
    int32_t taken = 0;  // before this place takes its k-th
    for (int i = 0; i < 3; ++i) {
      const int32_t begin = cuts[i], size = cuts[i + 1] - begin;  // places that are free at once
      if (size == 0) continue;
      if (place >= begin && place < begin + size) {
        taken += k * size + place - begin;
      } else {
        taken += size * std::max(0, time - free_at(begin) + (begin < place ? 1 : 0));
      }
    }
    return taken;
  }

 private:
  constexpr int32_t free_at(int32_t place) const {
    return (place < grid - long_starts ? 1 : ratio) + ratio * long_tiles(place);
  }
};

// The tile behind a number among those from `first` on that are not in the ascending list `others`.
constexpr int32_t tile_of(int32_t number, int32_t first, const int32_t* others, int32_t count) {
  int32_t low = 0, high = count;  // how many of the others come before it
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (others[middle] - first - middle > number) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return first + number + low;
}

}  // namespace chipmunk::cuda
