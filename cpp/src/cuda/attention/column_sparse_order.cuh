// How the tiles of column-sparse attention are shared out among the CTAs; see tile_schedule.h.
#pragma once

#include <cstdint>

#include "cuda/attention/column_sparse_params.h"
#include "cuda/attention/tile_schedule.h"
#include "cuda/device/barriers.cuh"

namespace chipmunk::cuda {

// Where a tile lies.
struct TilePlace {
  int32_t batch, head, in_head, group;  // in_head: which of the head's tiles
  __device__ TilePlace(const ColumnSparseKernelParams& p, int32_t tile) {
    const auto heads = static_cast<int32_t>(p.op.attention.query_heads);
    const int32_t batch_head = tile / p.tiles_per_head;
    in_head = tile % p.tiles_per_head;
    group = in_head / p.tiles_per_group;
    batch = batch_head / heads;
    head = batch_head % heads;
  }
  __device__ const int32_t* count_of(const ColumnListsParams& c) const {
    return c.counts.data + batch * c.counts.strides[0] + head * c.counts.strides[1] +
           group * c.counts.strides[2];
  }
  __device__ int32_t count(const ColumnListsParams& c) const {
    return min(__ldg(count_of(c)), static_cast<int32_t>(c.capacity));
  }
};

struct TileOrder {
  static constexpr int kMostLong = 512, kMostWarps = 12;
  LongFirst plan;
  int32_t place;  // this CTA's
  bool uniform;   // no tile is long, or too many are
  int32_t long_tiles[kMostLong];
  // Of each warp's share of the lists, and then of the tiles, while the order is made.
  int64_t cost[kMostWarps], long_cost[kMostWarps];
  int32_t most[kMostWarps], starts[kMostWarps], before[kMostWarps], later[kMostWarps];
};

constexpr int32_t kFixedTileCost = 128;  // in columns

// Whether no list takes more than twice the mean. By kWarps warps, before anything else can be
// done: a launch of short lists is over soon.
template <int kWarps>
__device__ __forceinline__ bool lists_are_alike(const ColumnSparseKernelParams& p,
                                                TileOrder& order) {
  constexpr uint32_t kAll = 0xffffffffu;
  const ColumnListsParams& c = p.op.columns;
  const int thread = static_cast<int>(threadIdx.x) - 128;
  const auto heads = static_cast<int32_t>(p.op.attention.query_heads);
  const int32_t groups = (p.tiles_per_head + p.tiles_per_group - 1) / p.tiles_per_group;
  const int32_t lists = p.tiles / p.tiles_per_head * groups;
  const bool contiguous = c.counts.strides[2] == 1 && c.counts.strides[1] == groups &&
                          c.counts.strides[0] == static_cast<int64_t>(heads) * groups;
  int64_t cost = 0;
  int32_t most = 0;
#pragma unroll 1
  for (int32_t first = thread; first < lists; first += 4 * 32 * kWarps) {
    int32_t counts[4];  // loads under way together
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t list = first + i * 32 * kWarps;
      int64_t at = list;
      if (!contiguous) {
        const int32_t batch_head = list / groups;
        at = batch_head / heads * c.counts.strides[0] + batch_head % heads * c.counts.strides[1] +
             list % groups * c.counts.strides[2];
      }
      counts[i] = list < lists ? __ldg(c.counts.data + at) : -kFixedTileCost;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t list_cost = min(counts[i], static_cast<int32_t>(c.capacity)) + kFixedTileCost;
      cost += list_cost;
      most = max(most, list_cost);
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) cost += __shfl_xor_sync(kAll, cost, step);
  most = __reduce_max_sync(kAll, most);
  if (thread % 32 == 0) {
    order.cost[thread / 32] = cost;
    order.most[thread / 32] = most;
  }
  named_sync(kOrder, 32 * kWarps);
  cost = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    cost += order.cost[i];
    most = max(most, order.most[i]);
  }
  return static_cast<int64_t>(most) * lists <= 2 * cost;
}

// Looks at all lists, by the first kWarps warps behind the producer's; who reads `order` waits
// until a lane of each has arrived at `ready`. A tile is long if it takes more than twice the mean.
template <int kWarps>
__device__ __forceinline__ void make_order(const ColumnSparseKernelParams& p, TileOrder& order,
                                           const Barrier& ready) {
  static_assert(kWarps <= TileOrder::kMostWarps);
  if (lists_are_alike<kWarps>(p, order)) {
    if (threadIdx.x == 128) order.uniform = true;
    __syncwarp();
    if (threadIdx.x % 32 == 0) ready.arrive();
    return;
  }
  constexpr uint32_t kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x % 32),
            warp = static_cast<int>(threadIdx.x / 32) - 4;
  const auto cta = static_cast<int32_t>(blockIdx.x), grid = static_cast<int32_t>(gridDim.x);
  const int32_t stretch = (p.tiles + 32 * kWarps - 1) / (32 * kWarps) * 32;
  const int32_t begin = min(warp * stretch, p.tiles), end = min(begin + stretch, p.tiles);
  const auto cost_of = [&](int32_t tile) {
    return TilePlace(p, tile).count(p.op.columns) + kFixedTileCost;
  };
  const auto in_warp = [&](int64_t x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
    return x;
  };
  const auto in_all = [&](const auto& of_warps) {
    int64_t sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += of_warps[i];
    return sum;
  };

  named_sync(kOrder, 32 * kWarps);  // all have read what lists_are_alike left
  int64_t cost = 0, long_cost = 0;
#pragma unroll 4
  for (int32_t tile = begin + lane; tile < end; tile += 32) cost += cost_of(tile);
  cost = in_warp(cost);
  if (lane == 0) order.cost[warp] = cost;
  named_sync(kOrder, 32 * kWarps);
  const int64_t all = in_all(order.cost);
  const auto is_long = [&](int32_t tile_cost) {
    return static_cast<int64_t>(tile_cost) * p.tiles > 2 * all;
  };
  int32_t starts = 0, before = 0, later = 0;
#pragma unroll 4
  for (int32_t tile = begin + lane; tile < end; tile += 32) {
    const int32_t tile_cost = cost_of(tile);
    if (!is_long(tile_cost)) continue;
    long_cost += tile_cost;
    starts += tile < grid ? 1 : 0;
    before += tile < cta ? 1 : 0;
    later += tile < grid ? 0 : 1;
  }
  long_cost = in_warp(long_cost);
  starts = __reduce_add_sync(kAll, starts);
  before = __reduce_add_sync(kAll, before);
  later = __reduce_add_sync(kAll, later);
  if (lane == 0) {
    order.long_cost[warp] = long_cost;
    order.starts[warp] = starts;
    order.before[warp] = before;
    order.later[warp] = later;
  }
  named_sync(kOrder, 32 * kWarps);

  const auto all_starts = static_cast<int32_t>(in_all(order.starts));
  const auto all_later = static_cast<int32_t>(in_all(order.later));
  const bool uniform = all_starts + all_later == 0 || all_later > TileOrder::kMostLong;
  if (warp == 0 && lane == 0) {
    order.uniform = uniform;
    if (!uniform) {
      const int32_t count = all_starts + all_later;
      const int64_t of_long = in_all(order.long_cost);
      const float mean_long = static_cast<float>(of_long) / static_cast<float>(count);
      const float mean_short =
          static_cast<float>(all - of_long) / static_cast<float>(p.tiles - count);
      order.plan = {grid, p.tiles, all_starts, all_later, __float2int_rn(mean_long / mean_short)};
      order.place =
          order.plan.place(cta, is_long(cost_of(cta)), static_cast<int32_t>(in_all(order.before)));
    }
  }
  if (!uniform && later > 0) {
    int32_t at = 0;
    for (int i = 0; i < warp; ++i) at += order.later[i];
#pragma unroll 1
    for (int32_t base = begin; base < end; base += 32) {
      const int32_t tile = base + lane;
      const bool mine = tile < end && tile >= grid && is_long(cost_of(tile));
      const uint32_t lanes = __ballot_sync(kAll, mine);
      if (mine) order.long_tiles[at + __popc(lanes & ((1u << lane) - 1))] = tile;
      at += __popc(lanes);
    }
  }
  __syncwarp();
  if (lane == 0) ready.arrive();
}

}  // namespace chipmunk::cuda
