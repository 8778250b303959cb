// The producer of dense attention: has the copy engine load K and V.
#pragma once

#include "cuda/attention/dense/traits.cuh"
#include "cuda/attention/epilogue.cuh"

namespace chipmunk::cuda {

// Where tile j of a head's keys starts. Tile 0 is the ragged end of the keys: what lies behind it
// reads as zeros. The others come in order, or from the end.
template <int kKeys>
struct KeyOrder {
  int32_t tiles;
  bool backwards;

  __device__ explicit KeyOrder(const Work& work)
      : tiles(KeyTiles<kKeys>(work.count).tiles), backwards(work.backwards != 0) {}
  __device__ int32_t first_key(int32_t j) const {
    return kKeys * (j == 0 ? tiles - 1 : backwards ? tiles - 1 - j : j - 1);
  }
};

// One thread. For each of the CTA's tiles: K(0), then V(j - 1), K(j), or the other way round where
// both products start together, then the last V. Behind the next tile's K(0), one more stage of
// each is for the tile's result.
template <class Traits>
class DenseProducer {
 public:
  __device__ __forceinline__ DenseProducer(const typename Traits::Params& params,
                                           typename Traits::Shared& storage)
      : p(params), shared(storage) {}

  __device__ __forceinline__ void run() {
    Work work = publish(0);
    if (work.count > 0 && p.attention.query_rows == nullptr) ask_for_first_queries(work, 0, 1);
    uint32_t n = 0;
    for (; work.count > 0; ++n) {
      const KeyOrder<kKeys> keys(work);
      load_k(work, keys.first_key(0));
      if (n == 0 && p.attention.query_rows == nullptr) {
        ask_for_first_queries(work, 1, work.warpgroups);
      }
      if (n > 0) hand_over();
      ++slot_;
      const Work next = publish(n + 1);
#pragma unroll 1
      for (int32_t j = 1; j < keys.tiles; ++j) {
        if constexpr (Traits::kOverlapped) {
          load_k(work, keys.first_key(j));
          load_v(work, keys.first_key(j - 1));
        } else {  // V's stage is free sooner, and its rows are needed sooner
          load_v(work, keys.first_key(j - 1));
          load_k(work, keys.first_key(j));
        }
        ++slot_;
      }
      prefetch_queries(next);
      load_v(work, keys.first_key(keys.tiles - 1));
      work = next;
    }
    if (n > 0) hand_over();
  }

 private:
  static constexpr int kKeys = Traits::kKeys;

  // The CTA's n-th tile, which it tells everybody.
  __device__ __forceinline__ Work publish(uint32_t n) {
    const auto grid = static_cast<int32_t>(gridDim.x);
    const Item item =
        p.rounds.item(static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(n), grid);
    Work work{};
    if (item.tile >= 0) {
      const TilePlace at(p, item.tile);
      const Blocks blocks = blocks_of(item.part, p.rows_per_tile / 64);
      work = {.batch = at.batch,
              .head = at.head,
              .first_row = at.in_head * p.rows_per_tile + 64 * blocks.first,
              .count = static_cast<int32_t>(p.attention.keys),
              .warpgroups = blocks.count,
              // Every other round reads the keys from the end: what it reads first, the CTAs have
              // just read.
              .backwards = item.tile / grid % 2};
      // A part whose rows all lie behind the last one. There is none after it.
      if (work.first_row >= p.attention.queries) work.count = 0;
    }
    shared.work.publish(n, work);
    return work;
  }

  __device__ __forceinline__ void ask_for_first_queries(const Work& work, int first, int end) {
#pragma unroll 1
    for (int w = first; w < end; ++w) ask_for_queries<Traits>(p, shared, work, w);
  }
  // Has L2 read a tile's queries, shortly before they are asked for.
  __device__ __forceinline__ void prefetch_queries(const Work& work) const {
    const int32_t boxes = work.count > 0 && p.attention.query_rows == nullptr ? work.warpgroups : 0;
#pragma unroll 1
    for (int32_t w = 0; w < boxes; ++w) prefetch_panels<Traits::kPanels>(p.q, work.place(64 * w));
  }

  __device__ __forceinline__ RowPlace keys_at(const Work& work, int32_t first_key) const {
    return {work.batch, work.head / p.query_heads_per_kv_head, first_key};
  }
  __device__ __forceinline__ void load_k(const Work& work, int32_t first_key) {
    shared.k_ring.acquire(slot_);
    load_panels<kKeys, Traits::kPanels, CacheHint::kNormal>(p.k, shared.k_ring.full[slot_.stage],
                                                            shared.k_stage(slot_.stage),
                                                            keys_at(work, first_key));
  }
  // V runs one slot behind K.
  __device__ __forceinline__ void load_v(const Work& work, int32_t first_key) {
    const auto at = slot_.before();
    shared.v_ring.acquire(at);
    load_panels<kKeys, Traits::kPanels, CacheHint::kNormal>(
        p.v, shared.v_ring.full[at.stage], shared.v_stage(at.stage), keys_at(work, first_key));
  }
  // Hands the consumers one more stage of V, at slot_, and one of K, behind it, to write their
  // latest tile's rows into.
  __device__ __forceinline__ void hand_over() {
    const auto in_v = slot_;
    ++slot_;
    shared.v_ring.acquire(in_v);
    shared.v_ring.commit(in_v);
    shared.k_ring.acquire(slot_);
    shared.k_ring.commit(slot_);
  }

  const typename Traits::Params& p;
  typename Traits::Shared& shared;
  RingPosition<Traits::kStages> slot_ = RingPosition<Traits::kStages>::of_producer();  // of K
};

// Without keys there is nothing to multiply: zeros, and lse -inf. By 128 threads.
template <class Traits>
__device__ __forceinline__ void write_empty_tiles(const typename Traits::Params& p) {
  const auto grid = static_cast<int32_t>(gridDim.x);
#pragma unroll 1
  for (int32_t tile = static_cast<int32_t>(blockIdx.x); tile < p.tiles; tile += grid) {
    const TilePlace at(p, tile);
    Work work{};
    work.batch = at.batch;
    work.head = at.head;
    work.first_row = at.in_head * p.rows_per_tile;
    work.warpgroups = p.rows_per_tile / 64;
    write_empty_tile<Traits>(p, work);
  }
}

}  // namespace chipmunk::cuda
