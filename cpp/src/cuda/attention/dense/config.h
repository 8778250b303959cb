// Tile shapes of dense attention: host-only, so that machines without a GPU test them.
#pragma once

#include "cuda/attention/tile_config.h"

namespace chipmunk::cuda {

// The warps' parts of the column sums of one tile of keys.
constexpr int column_sum_bytes(const TileConfig& config) {
  return 4 * config.warpgroups * config.keys * 4;
}

// So many tiles' sums are in flight: two, lest a warpgroup waits for the slowest of the tile
// before, where shared memory has room.
constexpr int column_sum_stages(int head_dim) { return head_dim == 256 ? 1 : 2; }

constexpr TileConfig dense_config(int head_dim, bool column_sums) {
  const int row_blocks = head_dim == 256 ? 2 : 3;
  return {.warpgroups = row_blocks,
          .keys = head_dim == 256 ? 80 : 112,
          .stages = head_dim == 256  ? 2
                    : head_dim == 64 ? 4
                                     : 3,
          .consumer_registers = row_blocks == 2 ? 224
                                : column_sums   ? 152
                                                : 160,
          .producer_registers = row_blocks == 2 || column_sums ? 56 : 32,
          .overlapped = false,
          .holds_queries = head_dim == 64};
}

// Blocks of 64 rows of a tile in column sums of groups of `query_group`, so that a group is never
// in two tiles; 0 where there is no kernel.
constexpr int column_sum_row_blocks(int head_dim, int query_group) {
  const int most = dense_config(head_dim, /*column_sums=*/true).warpgroups;
  switch (query_group) {
    case 64:
      return most;
    case 128:
      return 2;
    case 192:
      return most == 3 ? 3 : 0;
    default:
      return 0;
  }
}

}  // namespace chipmunk::cuda
