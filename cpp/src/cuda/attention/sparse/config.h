// Tile shapes of column-sparse attention: host-only, so that machines without a GPU test them.
#pragma once

#include <cstdint>

namespace chipmunk::cuda {

struct TileConfig {
  int warpgroups;          // consumers, 64 query rows each
  int keys;                // of one tile of K or V
  int stages;              // tiles of K, and of V, in shared memory
  int consumer_registers;  // per thread
  int producer_registers;
  // QK and PV are under way together, for which scores and weights need registers of their own.
  bool overlapped;
  // Queries in registers are not read from shared memory again for every tile of keys.
  bool holds_queries;

  constexpr int query_rows() const { return 64 * warpgroups; }
  constexpr int threads() const { return 128 * (warpgroups + 1); }
};

// Rows of shared memory are panels of 64 elements: 128 bytes, the widest swizzle.
constexpr int padded_head_dim(int head_dim) { return (head_dim + 63) / 64 * 64; }

constexpr int shared_tile_bytes(int head_dim, const TileConfig& config) {
  const int row_bytes = 2 * padded_head_dim(head_dim);
  return row_bytes * (config.query_rows() + 2 * config.stages * config.keys);
}

// Blocks of 64 rows of the tiles that make up a query group; 0 where there is no kernel. Three
// warpgroups have 152 registers a thread: too few for the sums of 256 columns.
constexpr int row_blocks_for(int head_dim, int query_group) {
  if (head_dim != 64 && head_dim != 96 && head_dim != 128 && head_dim != 256) return 0;
  switch (query_group) {
    case 64:
      return 1;
    case 128:
    case 256:
      return 2;
    case 192:
      return head_dim == 256 ? 1 : 3;
    default:
      return 0;
  }
}

constexpr TileConfig column_sparse_config(int head_dim, int row_blocks) {
  return {.warpgroups = row_blocks,
          .keys = head_dim == 256                    ? 80
                  : row_blocks == 2 && head_dim > 64 ? 128
                                                     : 112,
          .stages = head_dim == 256  ? 2
                    : head_dim == 64 ? 4
                                     : 3,
          .consumer_registers = row_blocks == 3   ? 152
                                : row_blocks == 1 ? 240
                                : head_dim == 256 ? 224
                                                  : 216,
          .producer_registers = row_blocks == 3 || (row_blocks == 2 && head_dim == 256) ? 56 : 72,
          .overlapped = row_blocks == 1 || (row_blocks == 2 && head_dim <= 128),
          .holds_queries = head_dim == 64};
}

// Whether the tiles of a last round are split in 128 and 64 rows (schedule.h): fewer rows share the
// tensor cores, so a part is done sooner. At head dim 64 the softmax of one warpgroup takes as long
// as the products of all.
constexpr bool splits_last_round(int head_dim, int row_blocks) {
  return row_blocks == 3 && head_dim != 64;
}

}  // namespace chipmunk::cuda
