// The shape of a tile of attention: host-only, so that machines without a GPU test it.
#pragma once

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

// Whether the tiles of a last round are split in 128 and 64 rows (schedule.h): fewer rows share the
// tensor cores, so a part is done sooner. At head dim 64 the softmax of one warpgroup takes as long
// as the products of all.
constexpr bool splits_last_round(int head_dim, int row_blocks) {
  return row_blocks == 3 && head_dim != 64;
}

}  // namespace chipmunk::cuda
