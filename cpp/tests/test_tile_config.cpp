// Tile choices of the CUDA attention kernels: what fits a Hopper multiprocessor, without one.
#include "cuda/attention/dense/config.h"
#include "cuda/attention/sparse/config.h"
#include "testing.h"

namespace {

using chipmunk::cuda::column_sparse_config;
using chipmunk::cuda::column_sum_bytes;
using chipmunk::cuda::column_sum_row_blocks;
using chipmunk::cuda::column_sum_stages;
using chipmunk::cuda::dense_config;
using chipmunk::cuda::row_blocks_for;
using chipmunk::cuda::shared_tile_bytes;
using chipmunk::cuda::TileConfig;

constexpr int kSharedBytes = 227 * 1024;
constexpr int kBarrierBytes = 1024;
constexpr int kDenseBarrierBytes = 512;
constexpr int kRegisters = 64 * 1024;

// A CTA has what it was launched with, the same for every thread, to deal out again: asked for
// more, setmaxnreg waits for ever.
void check_registers(testing::Tests& tests, const TileConfig& config, const std::string& name) {
  const int at_launch = kRegisters / config.threads() / 8 * 8 * config.threads();
  const int registers =
      128 * (config.producer_registers + config.warpgroups * config.consumer_registers);
  tests.check(registers <= at_launch, "registers: " + name);
  tests.check(config.producer_registers % 8 == 0 && config.consumer_registers % 8 == 0,
              "setmaxnreg takes multiples of 8: " + name);
}

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
        check_registers(tests, config, name);
      }
    }
  });
  tests.add("tiles of a group", [&] {
    tests.check(row_blocks_for(128, 192) == 3, "192 rows are one tile");
    tests.check(row_blocks_for(256, 192) == 1, "at head dim 256 three, for want of registers");
    tests.check(row_blocks_for(128, 256) == 2, "a group of 256 is two tiles");
  });
  tests.add("dense attention, with and without column sums, has a tile that fits", [&] {
    for (const int head_dim : {64, 96, 128, 256}) {
      for (const bool sums : {false, true}) {
        const std::string name = std::to_string(head_dim) + (sums ? " with sums" : "");
        const TileConfig config = dense_config(head_dim, sums);
        const int parts = sums ? column_sum_bytes(config) * column_sum_stages(head_dim) : 0;
        tests.check(
            shared_tile_bytes(head_dim, config) + parts + kDenseBarrierBytes <= kSharedBytes,
            "shared memory: " + name);
        tests.check(!config.overlapped, "sums are handed over in turns: " + name);
        check_registers(tests, config, name);
      }
    }
  });
  tests.add("groups of column sums", [&] {
    tests.check(column_sum_row_blocks(128, 192) == 3, "192 rows are one tile");
    tests.check(column_sum_row_blocks(128, 128) == 2, "128 rows are one, with a warpgroup idle");
    tests.check(column_sum_row_blocks(128, 64) == 3, "64 rows are a third of one");
    tests.check(column_sum_row_blocks(256, 64) == 2, "at head dim 256 a half");
    tests.check(column_sum_row_blocks(128, 256) == 0, "256 rows are more than one");
    tests.check(column_sum_row_blocks(256, 192) == 0, "192 at head dim 256 are, too");
  });
  tests.add("what has no tile", [&] {
    tests.check(row_blocks_for(80, 192) == 0, "head_dim 80");
    tests.check(row_blocks_for(128, 100) == 0, "query_group 100");
    tests.check(row_blocks_for(128, 384) == 0, "query_group 384");
  });
  return tests.run();
}
