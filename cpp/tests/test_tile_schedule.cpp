// Which tiles the CTAs of column-sparse attention take: every tile once, and no CTA too much.
#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cuda/attention/sparse/schedule.h"
#include "testing.h"

namespace {

using chipmunk::cuda::Item;
using chipmunk::cuda::LongFirst;
using chipmunk::cuda::Part;
using chipmunk::cuda::Rounds;
using chipmunk::cuda::rounds;
using chipmunk::cuda::tile_of;

// What every CTA takes, in order, as the kernel computes it.
std::vector<std::vector<int32_t>> deal(const std::vector<bool>& is_long, int32_t grid,
                                       int32_t ratio) {
  const auto tiles = static_cast<int32_t>(is_long.size());
  LongFirst plan{grid, tiles, 0, 0, ratio};
  std::vector<int32_t> later;
  for (int32_t t = 0; t < tiles; ++t) {
    if (!is_long[t]) continue;
    if (t < grid) {
      ++plan.long_starts;
    } else {
      later.push_back(t);
    }
  }
  plan.long_later = static_cast<int32_t>(later.size());
  std::vector<std::vector<int32_t>> taken(grid);
  int32_t before = 0;
  for (int32_t cta = 0; cta < grid; ++cta) {
    taken[cta].push_back(cta);
    const int32_t place = plan.place(cta, is_long[cta], before);
    before += is_long[cta] ? 1 : 0;
    const int32_t long_tiles = plan.long_tiles(place);
    for (int32_t i = 0; i < long_tiles; ++i) taken[cta].push_back(later[place + i * grid]);
    for (int32_t k = 0;; ++k) {
      const int32_t number = plan.short_tile(place, k);
      if (number >= plan.short_later()) break;
      taken[cta].push_back(tile_of(number, grid, later.data(), plan.long_later));
    }
  }
  return taken;
}

int32_t cost_of(const std::vector<int32_t>& tiles, const std::vector<bool>& is_long,
                int32_t ratio) {
  int32_t cost = 0;
  for (const int32_t t : tiles) cost += is_long[t] ? ratio : 1;
  return cost;
}

}  // namespace

int main() {
  testing::Tests tests;
  tests.add("rounds: when a last round is split", [&] {
    const auto is = [](const Rounds& a, int32_t whole, int32_t split) {
      return a.whole == whole && a.split == split;
    };
    tests.check(is(rounds(576, 132, 1), 528, 48), "48 left over");
    tests.check(is(rounds(576, 132, 0), 576, 0), "may not be split");
    tests.check(is(rounds(528, 132, 1), 528, 0), "none left over");
    tests.check(is(rounds(594, 132, 1), 528, 66), "66 left over");
    tests.check(is(rounds(595, 132, 1), 595, 0), "67 left over");
    tests.check(is(rounds(616, 132, 2), 528, 88), "88 left over, two small parts a tile");
    tests.check(is(rounds(617, 132, 2), 617, 0), "89 left over, two small parts a tile");
    tests.check(is(rounds(5, 132, 1), 0, 5), "less than a round");
    tests.check(is(rounds(100, 132, 1), 100, 0), "less than a round, but too many");
  });
  tests.add("rounds: every tile once, whole or in two parts, and no CTA too much", [&] {
    for (const int32_t multiprocessors : {1, 2, 3, 7, 132}) {
      for (int32_t tiles = 1; tiles < 4 * multiprocessors + 3; ++tiles) {
        for (int32_t small_parts = 0; small_parts < 3; ++small_parts) {
          const Rounds r = rounds(tiles, multiprocessors, small_parts);
          const int32_t grid = r.ctas(multiprocessors);
          const std::string name = std::to_string(multiprocessors) + ", " + std::to_string(tiles) +
                                   ", " + std::to_string(small_parts);
          std::vector<int> whole(tiles), large(tiles), small(tiles);
          bool fair = true;
          for (int32_t cta = 0; cta < grid; ++cta) {
            int32_t parts[3] = {0, 0, 0};
            for (int32_t n = 0;; ++n) {
              const Item item = r.item(cta, n, grid);
              if (item.tile < 0) break;
              auto& seen = item.part == Part::kWhole   ? whole
                           : item.part == Part::kLarge ? large
                                                       : small;
              ++seen.at(item.tile);
              ++parts[static_cast<int>(item.part)];
            }
            fair = fair && parts[0] + parts[1] <= (tiles + multiprocessors - 1) / multiprocessors &&
                   parts[1] + (parts[2] + small_parts - 1) / std::max(1, small_parts) <= 1;
          }
          bool once = true;
          for (int32_t t = 0; t < tiles; ++t) {
            once = once && (whole[t] == 1 ? large[t] + small[t] == 0
                                          : whole[t] == 0 && large[t] == 1 && small[t] == 1);
          }
          tests.check(once, "every tile once: " + name);
          tests.check(fair, "no CTA too much: " + name);
        }
      }
    }
  });
  tests.add("long tiles first: every tile once", [&] {
    std::mt19937 random(1);
    for (int trial = 0; trial < 2000; ++trial) {
      const auto grid = static_cast<int32_t>(random() % 40 + 1);
      const auto tiles = grid + static_cast<int32_t>(random() % 400 + 1);
      const auto ratio = static_cast<int32_t>(random() % 20 + 2);
      const auto one_in = random() % 30 + 1;
      std::vector<bool> is_long(tiles);
      for (auto&& flag : is_long) flag = random() % one_in == 0;
      std::vector<int32_t> all;
      for (const auto& taken : deal(is_long, grid, ratio)) {
        all.insert(all.end(), taken.begin(), taken.end());
      }
      std::sort(all.begin(), all.end());
      bool once = static_cast<int32_t>(all.size()) == tiles;
      for (int32_t t = 0; once && t < tiles; ++t) once = all[t] == t;
      tests.check(once, "grid " + std::to_string(grid) + ", tiles " + std::to_string(tiles) +
                            ", ratio " + std::to_string(ratio) + ", one in " +
                            std::to_string(one_in));
    }
  });
  tests.add("long tiles first: nobody takes a tile while another has been free for long", [&] {
    std::mt19937 random(2);
    for (int trial = 0; trial < 500; ++trial) {
      const auto grid = static_cast<int32_t>(random() % 40 + 2);
      const auto ratio = static_cast<int32_t>(random() % 10 + 2);
      std::vector<bool> is_long(grid * (ratio + 4));
      for (auto&& flag : is_long) flag = random() % 12 == 0;
      int32_t least = INT32_MAX, most = 0;
      for (const auto& taken : deal(is_long, grid, ratio)) {
        const int32_t cost = cost_of(taken, is_long, ratio);
        least = std::min(least, cost);
        most = std::max(most, cost);
      }
      tests.check(most - least <= 1, "uneven by " + std::to_string(most - least));
    }
  });
  tests.add("text that attends to everything: 3 of 24 groups, 6 times as long", [&] {
    std::vector<bool> is_long(24 * 24);
    for (size_t t = 0; t < is_long.size(); ++t) is_long[t] = t % 24 < 3;
    int32_t most = 0;
    for (const auto& taken : deal(is_long, 132, 6)) {
      most = std::max(most, cost_of(taken, is_long, 6));
    }
    tests.check(most == 8, "the busiest takes " + std::to_string(most) + ", of 7.1 on average");
  });
  return tests.run();
}
