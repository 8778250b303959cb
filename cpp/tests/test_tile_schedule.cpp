// Which tiles the CTAs of column-sparse attention take: every row once, and no CTA too much.
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/attention/schedule.h"
#include "testing.h"

namespace {

using chipmunk::ListPart;
using chipmunk::cuda::Blocks;
using chipmunk::cuda::blocks_of;
using chipmunk::cuda::Item;
using chipmunk::cuda::Rounds;
using chipmunk::cuda::rounds;

// How often each block of 64 rows of each tile is taken, tiles of three blocks.
std::vector<int> taken(const Rounds& plan, int32_t tiles, int32_t grid) {
  std::vector<int> blocks(static_cast<size_t>(3 * tiles));
  for (int32_t cta = 0; cta < grid; ++cta) {
    for (int32_t n = 0;; ++n) {
      const Item item = plan.item(cta, n, grid);
      if (item.tile < 0) break;
      const Blocks part = blocks_of(item.part, 3);
      for (int32_t i = 0; i < part.count; ++i) ++blocks[3 * item.tile + part.first + i];
    }
  }
  return blocks;
}

}  // namespace

int main() {
  testing::Tests tests;
  tests.add("rounds take every row once", [&] {
    for (const int32_t multiprocessors : {1, 7, 78, 114, 132}) {
      for (int32_t tiles = 0; tiles < 5 * multiprocessors; tiles += tiles < 150 ? 1 : 13) {
        for (const bool may_split : {false, true}) {
          const Rounds plan = rounds(tiles, multiprocessors, may_split);
          const int32_t grid = plan.ctas(multiprocessors);
          const std::string name = std::to_string(tiles) + " on " + std::to_string(multiprocessors);
          tests.check(grid <= multiprocessors, "CTAs: " + name);
          tests.check(may_split || plan.split == 0, "split: " + name);
          for (const int times : taken(plan, tiles, grid)) tests.check(times == 1, name);
        }
      }
    }
  });
  tests.add("a last round is split where it leaves half of the multiprocessors idle", [&] {
    tests.check(rounds(4 * 132 + 66, 132, true).split == 66, "66 of 132");
    tests.check(rounds(4 * 132 + 67, 132, true).split == 0, "67 of 132");
    tests.check(rounds(4 * 132, 132, true).split == 0, "none left");
    const Rounds plan = rounds(132 + 2, 132, true);
    tests.check(plan.item(0, 1, 132).part == ListPart::kFirst128Rows, "first rows");
    tests.check(plan.item(2, 1, 132).part == ListPart::kFromRow128, "the rows behind them");
    tests.check(plan.item(2, 1, 132).tile == 132, "of the same tile");
    tests.check(plan.item(4, 1, 132).tile == -1, "and nothing for the others");
  });
  tests.add("parts of a group", [&] {
    const auto is = [](Blocks blocks, int32_t first, int32_t count) {
      return blocks.first == first && blocks.count == count;
    };
    tests.check(is(blocks_of(ListPart::kWhole, 3), 0, 3), "192 rows");
    tests.check(is(blocks_of(ListPart::kFirst128Rows, 3), 0, 2), "its first 128");
    tests.check(is(blocks_of(ListPart::kFromRow128, 3), 2, 1), "the others");
    tests.check(is(blocks_of(ListPart::kFromRow128, 4), 2, 2), "of 256 rows");
    tests.check(is(blocks_of(ListPart::kFirst128Rows, 1), 0, 1), "64 rows are all first");
    tests.check(is(blocks_of(ListPart::kFromRow128, 2), 2, 0), "and 128 leave none");
  });
  return tests.run();
}
