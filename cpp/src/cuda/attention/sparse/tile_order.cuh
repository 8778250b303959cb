// The tiles of a CTA, one after another: by the lists' order, or as they come (schedule.h).
#pragma once

#include <cstdint>

#include "cuda/attention/sparse/params.h"

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
};

// Some blocks of 64 rows of a tile.
struct TileBlocks {
  int32_t tile;  // -1: none
  Blocks blocks;
};

// `kRowBlocks` are those of a whole tile. An order that is no permutation gives tiles twice or
// leaves them out; it is never followed out of bounds, nor for ever.
template <int kRowBlocks>
class TileOrder {
 public:
  // Starts to load the first link.
  __device__ __forceinline__ explicit TileOrder(const ColumnSparseKernelParams& params)
      : p(params) {
    if (p.op.columns.order == nullptr) return;
    by_order_ = __ldg(p.op.columns.order) >= 0;
    link_ = __ldg(p.op.columns.order + min(cta(), lists() - 1));
    chain_ = cta();
    if (chain_ >= lists()) link_ = -1;
    left_ = 2 * lists();
  }

  __device__ __forceinline__ TileBlocks next() {
    if (by_order_) return next_by_order();
    const Item item = p.rounds.item(cta(), taken_++, static_cast<int32_t>(gridDim.x));
    return {item.tile, blocks_of(item.part, kRowBlocks)};
  }

 private:
  static __device__ __forceinline__ int32_t cta() { return static_cast<int32_t>(blockIdx.x); }
  __device__ __forceinline__ int32_t groups() const {
    return static_cast<int32_t>(p.op.columns.groups);
  }
  __device__ __forceinline__ int32_t lists() const {
    return static_cast<int32_t>(p.op.attention.batch * p.op.attention.query_heads) * groups();
  }
  // The next tile of the current list, else the next list's first; the link behind it is loaded
  // here, so that it is there when it is wanted.
  __device__ __forceinline__ TileBlocks next_by_order() {
    while (tile_ >= tiles_end_) {
      while (link_ < 0 || left_ == 0) {
        chain_ += static_cast<int32_t>(gridDim.x);
        if (chain_ >= lists() || left_ == 0) return {-1, {0, 0}};
        link_ = __ldg(p.op.columns.order + chain_);
        if (link_ < 0) return {-1, {0, 0}};  // chains are numbered from 0 on
      }
      --left_;
      const int32_t list = min(link_ / 4, lists() - 1);
      const auto part = static_cast<ListPart>(min(link_ % 4, 2));
      link_ = __ldg(p.op.columns.order +
                    static_cast<int64_t>(part == ListPart::kFromRow128 ? 2 : 1) * lists() + list);
      const Blocks blocks = blocks_of(part, kRowBlocks * p.tiles_per_group);
      const int32_t in_head = list % groups() * p.tiles_per_group;
      first_tile_ = list / groups() * p.tiles_per_head;
      // A part of a tile, or whole tiles; of a head's last group there may be fewer.
      blocks_ = p.tiles_per_group == 1 ? blocks : Blocks{0, kRowBlocks};
      const bool one = p.tiles_per_group == 1;
      tile_ = in_head + (one ? 0 : blocks.first / kRowBlocks);
      tiles_end_ = min(p.tiles_per_head,
                       one ? tile_ + (blocks.count > 0 ? 1 : 0)
                           : in_head + (blocks.first + blocks.count) / kRowBlocks);
    }
    return {first_tile_ + tile_++, blocks_};
  }

  const ColumnSparseKernelParams& p;
  bool by_order_ = false;
  int32_t taken_ = 0;          // as they come
  int32_t link_ = -1;          // of the list that comes next
  int32_t chain_ = 0;          // the multiprocessor of the order whose lists these are
  int32_t left_ = 0;           // links that may still be followed
  int32_t first_tile_ = 0;     // of the current list's head
  int32_t tile_ = 0, tiles_end_ = 0;  // in the head, of the current list
  Blocks blocks_{0, 0};        // of these tiles
};

}  // namespace chipmunk::cuda
