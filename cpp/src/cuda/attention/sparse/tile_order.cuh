// The tiles of a CTA, one after another: by the lists' order, or as they come
// (cuda/attention/schedule.h).
#pragma once

#include <cstdint>

#include "cuda/attention/sparse/params.h"

namespace chipmunk::cuda {

// Some blocks of 64 rows of a tile.
struct TileBlocks {
  int32_t tile;  // -1: none
  Blocks blocks;
};

// `kRowBlocks` are those of a whole tile. A wrong order gives tiles twice or leaves them out; it is
// never followed out of bounds, nor for ever.
template <int kRowBlocks>
class TileOrder {
 public:
  // Loads the first link. An order for more multiprocessors than there are CTAs is not used.
  __device__ __forceinline__ explicit TileOrder(const ColumnSparseKernelParams& params)
      : p(params) {
    const auto cta = static_cast<int32_t>(blockIdx.x), ctas = static_cast<int32_t>(gridDim.x);
    if (p.columns.order == nullptr || load(0, 0) < 0) return;
    if (ctas < lists() && load(0, ctas) >= 0) return;
    link_ = cta < lists() ? max(load(0, cta), kNoLink) : kNoLink;
  }

  __device__ __forceinline__ TileBlocks next() {
    if (link_ != kAsTheyCome) return next_by_order();
    const Item item =
        p.rounds.item(static_cast<int32_t>(blockIdx.x), taken_++, static_cast<int32_t>(gridDim.x));
    return {item.tile, blocks_of(item.part, kRowBlocks)};
  }

 private:
  // A group of 192 rows is one tile of three blocks.
  static constexpr bool kOneTile = kRowBlocks == 3;
  static constexpr int32_t kAsTheyCome = kNoLink - 1;

  __device__ __forceinline__ int32_t groups() const {
    return static_cast<int32_t>(p.columns.groups);
  }
  __device__ __forceinline__ int32_t lists() const { return p.tiles / p.tiles_per_head * groups(); }
  __device__ __forceinline__ int32_t load(int32_t row, int32_t at) const {
    return __ldg(p.columns.order + static_cast<int64_t>(row) * lists() + at);
  }

  __device__ __forceinline__ TileBlocks next_by_order() {
    while (true) {
      if constexpr (!kOneTile) {  // the next tile of a list whose tiles are several
        const Blocks blocks = blocks_of(part_of(max(list_, 0)), kRowBlocks * p.tiles_per_group);
        const int32_t in_head = list_of(max(list_, 0)) % groups() * p.tiles_per_group +
                                blocks.first / kRowBlocks + in_list_;
        if (list_ >= 0 && in_list_ * kRowBlocks < blocks.count && in_head < p.tiles_per_head) {
          ++in_list_;
          const Blocks all{0, min(kRowBlocks, blocks.count)};
          return {list_of(list_) / groups() * p.tiles_per_head + in_head, all};
        }
      }
      if (link_ < 0 || taken_++ >= 2 * lists()) return {-1, {0, 0}};
      const int32_t list = min(list_of(link_), lists() - 1);
      const ListPart part = part_of(link_);
      // Loaded now, so that it is there when it is wanted.
      link_ = max(load(order_row_behind(part), list), kNoLink);
      if constexpr (kOneTile) {
        return {list / groups() * p.tiles_per_head + list % groups(), blocks_of(part, kRowBlocks)};
      } else {
        list_ = order_link(list, part);
        in_list_ = 0;
      }
    }
  }

  const ColumnSparseKernelParams& p;
  int32_t taken_ = 0;                     // rounds, or links followed
  int32_t link_ = kAsTheyCome;            // of the list that comes next
  int32_t list_ = kNoLink, in_list_ = 0;  // where a list has several tiles: the link of this one
};

}  // namespace chipmunk::cuda
