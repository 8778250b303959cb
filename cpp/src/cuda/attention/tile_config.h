// Tile shapes of the attention kernels: host-only, so that machines without a GPU test them.
#pragma once

#include <cstdint>

namespace chipmunk::cuda {

struct TileConfig {
  int warpgroups;          // consumers, 64 query rows each
  int keys;                // of one tile of K or V
  int stages;              // tiles of K, and of V, in shared memory
  int consumer_registers;  // per thread
  int producer_registers;
  int query_steps;  // of QK, 16 columns each, whose queries consumers hold in registers

  constexpr int query_rows() const { return 64 * warpgroups; }
  constexpr int threads() const { return 128 * (warpgroups + 1); }
};

// Rows of shared memory are panels of 64 elements: 128 bytes, the widest swizzle.
constexpr int padded_head_dim(int head_dim) { return (head_dim + 63) / 64 * 64; }

constexpr int shared_tile_bytes(int head_dim, const TileConfig& config) {
  const int row_bytes = 2 * padded_head_dim(head_dim);
  return row_bytes * (config.query_rows() + 2 * config.stages * config.keys);
}

// Blocks of 64 rows of the tiles that make up a query group; 0 where there is no kernel. A tile
// lies within one group; a group may be several tiles.
constexpr int row_blocks_for(int head_dim, int query_group) {
  if (head_dim != 64 && head_dim != 96 && head_dim != 128 && head_dim != 256) return 0;
  if (head_dim == 256 && query_group % 128 == 0) return 2;
  if (query_group % 192 == 0) return 3;
  if (query_group % 128 == 0) return 2;
  return query_group % 64 == 0 ? 1 : 0;
}

// Three warpgroups have 152 registers a thread: too few for 256 output columns. There, two
// warpgroups do 128 rows of a tile of 192, and then share the others: each takes half of the keys.
constexpr bool shares_rows(int head_dim, int row_blocks) {
  return head_dim == 256 && row_blocks == 3;
}

// Queries in registers are not read from shared memory again for every tile of keys. As many as fit
// without spills, where that was measured to be faster.
constexpr int query_steps(int head_dim, int row_blocks) {
  if (head_dim == 64) return 4;
  if (head_dim == 256) return row_blocks == 3 ? 4 : row_blocks == 2 ? 6 : 0;
  if (row_blocks < 3) return 0;
  return head_dim == 96 ? 2 : 1;
}

constexpr TileConfig column_sparse_config(int head_dim, int row_blocks) {
  const int warpgroups = shares_rows(head_dim, row_blocks) ? 2 : row_blocks;
  return {.warpgroups = warpgroups,
          .keys = head_dim == 256                    ? 80
                  : warpgroups == 2 && head_dim > 64 ? 128
                                                     : 112,
          .stages = head_dim == 256  ? 2
                    : head_dim == 64 ? 4
                                     : 3,
          .consumer_registers = warpgroups == 3   ? 152
                                : warpgroups == 1 ? 240
                                : head_dim == 256 ? 224
                                                  : 216,
          .producer_registers = warpgroups == 3 || (warpgroups == 2 && head_dim == 256) ? 56 : 72,
          .query_steps = query_steps(head_dim, row_blocks)};
}

// A tile of 192 rows may be split in 128 and 64 (tile_schedule.h). Fewer rows share the tensor
// cores, so each part is done sooner: this many small parts, one after another, take no longer than
// a tile. 0: not split, since the softmax of one warpgroup takes as long as the products of all.
constexpr int small_parts(int head_dim, int row_blocks) {
  if (row_blocks != 3 || head_dim == 64) return 0;
  return shares_rows(head_dim, row_blocks) ? 2 : 1;
}

}  // namespace chipmunk::cuda
