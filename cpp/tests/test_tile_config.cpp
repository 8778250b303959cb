// Tile choices of the CUDA attention kernels: what fits a Hopper multiprocessor, without one.
#include "cuda/attention/sparse/config.h"
#include "testing.h"

namespace {

using chipmunk::cuda::column_sparse_config;
using chipmunk::cuda::row_blocks_for;
using chipmunk::cuda::shared_tile_bytes;
using chipmunk::cuda::TileConfig;

constexpr int kSharedBytes = 227 * 1024;
constexpr int kBarrierBytes = 1024;
constexpr int kRegisters = 64 * 1024;

}  // namespace

int main() {
  testing::Tests tests;
  tests.add("every head dim and query group has a tile that fits", [&] {
    for (const int head_dim : {64, 96, 128, 256}) {
      for (const int query_group : {64, 128, 192, 256}) {
        const std::string name = std::to_string(head_dim) + ", " + std::to_string(query_group);
        const int row_blocks = row_blocks_for(head_dim, query_group);
        tests.check(row_blocks >= 1 && row_blocks <= 3, name);
        const TileConfig config = column_sparse_config(head_dim, row_blocks);
        tests.check(query_group % (64 * row_blocks) == 0, "whole tiles: " + name);
        tests.check(config.warpgroups == row_blocks, "a warpgroup for each block of rows: " + name);
        tests.check(config.keys % 16 == 0 && config.keys <= 128, "keys: " + name);
        tests.check(shared_tile_bytes(head_dim, config) + kBarrierBytes <= kSharedBytes,
                    "shared memory: " + name);
        // A CTA has what it was launched with, the same for every thread, to deal out again: asked
        // for more, setmaxnreg waits for ever.
        const int at_launch = kRegisters / config.threads() / 8 * 8 * config.threads();
        const int registers =
            128 * (config.producer_registers + config.warpgroups * config.consumer_registers);
        tests.check(registers <= at_launch, "registers: " + name);
        tests.check(config.producer_registers % 8 == 0 && config.consumer_registers % 8 == 0,
                    "setmaxnreg takes multiples of 8: " + name);
      }
    }
  });
  tests.add("tiles of a group", [&] {
    tests.check(row_blocks_for(128, 192) == 3, "192 rows are one tile");
    tests.check(row_blocks_for(256, 192) == 1, "at head dim 256 three, for want of registers");
    tests.check(row_blocks_for(128, 256) == 2, "a group of 256 is two tiles");
  });
  tests.add("what has no tile", [&] {
    tests.check(row_blocks_for(80, 192) == 0, "head_dim 80");
    tests.check(row_blocks_for(128, 100) == 0, "query_group 100");
    tests.check(row_blocks_for(128, 384) == 0, "query_group 384");
  });
  return tests.run();
}
