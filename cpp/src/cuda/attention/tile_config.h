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

  constexpr int query_rows() const { return 64 * warpgroups; }
  constexpr int threads() const { return 128 * (warpgroups + 1); }
};

// Rows of shared memory are panels of 64 elements: 128 bytes, the widest swizzle.
constexpr int padded_head_dim(int head_dim) { return (head_dim + 63) / 64 * 64; }

constexpr int shared_tile_bytes(int head_dim, const TileConfig& config) {
  const int row_bytes = 2 * padded_head_dim(head_dim);
  return row_bytes * (config.query_rows() + 2 * config.stages * config.keys);
}

// Consumer warpgroups of the tiles that make up a query group; 0 where there is no kernel. A tile
// lies within one group; a group may be several tiles.
constexpr int warpgroups_for(int head_dim, int query_group) {
  if (head_dim != 64 && head_dim != 96 && head_dim != 128 && head_dim != 256) return 0;
  // Three warpgroups have 152 registers a thread: too few for 256 output columns.
  if (query_group % 192 == 0 && head_dim != 256) return 3;
  if (query_group % 128 == 0) return 2;
  return query_group % 64 == 0 ? 1 : 0;
}

constexpr TileConfig column_sparse_config(int head_dim, int warpgroups) {
  return {.warpgroups = warpgroups,
          .keys = head_dim == 256 ? 80 : 112,
          .stages = head_dim == 256  ? 2
                    : head_dim == 64 ? 4
                                     : 3,
          .consumer_registers = warpgroups == 3   ? 152
                                : warpgroups == 2 ? 216
                                                  : 240,
          .producer_registers = warpgroups == 3 ? 56 : 72};
}

// A tile may be split in two (tile_schedule.h): this many warpgroups, and the others. Fewer
// warpgroups share the tensor cores, so each half is done sooner. 0: not split, since the softmax
// of one warpgroup takes as long as the products of all.
constexpr int split_warpgroups(int head_dim, int warpgroups) {
  return warpgroups == 3 && head_dim > 64 ? 2 : 0;
}

}  // namespace chipmunk::cuda
