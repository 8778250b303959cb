// Tile shapes of column-sparse attention: host-only, so that machines without a GPU test them.
#pragma once

#include "cuda/attention/tile_config.h"

namespace chipmunk::cuda {

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

}  // namespace chipmunk::cuda
