// The producer of column-sparse attention: gathers the listed rows of K and V.
#pragma once

#include <cutlass/arch/barrier.h>

#include "cuda/attention/column_sparse_epilogue.cuh"
#include "cuda/attention/column_sparse_traits.cuh"

namespace chipmunk::cuda {

// The producer warpgroup: for each of the CTA's tiles, K(0), then K(j), V(j - 1), then the last V.
// Tiles without keys it writes by itself.
template <class Traits>
class Producer {
 public:
  __device__ __forceinline__ Producer(const ColumnSparseKernelParams& params,
                                      typename Traits::Shared& storage)
      : p(params), shared(storage), gather_(static_cast<int>(threadIdx.x)) {}

  __device__ __forceinline__ void run() {
    find_next();
    publish(0);
    const uint32_t k_tiles = cute::cast_smem_ptr_to_uint(shared.k);
    for (uint32_t n = 1; next_.count > 0; ++n) {
      const int32_t count = next_.count;
      const KeyTiles<kKeys> keys(count);
      const AttentionParams& a = p.op.attention;
      const int32_t kv_head = next_.head / p.query_heads_per_kv_head;
      const char* k = static_cast<const char*>(a.k.data) + 2 * a.k.offset(next_.batch, kv_head, 0) +
                      gather_.chunk_bytes();
      const char* v = static_cast<const char*>(a.v.data) + 2 * a.v.offset(next_.batch, kv_head, 0) +
                      gather_.chunk_bytes();

      // This thread's column of a tile, two tiles ahead. Slots past the ragged tile's end repeat
      // its last column: a row that may be read, with weight 0.
      // Every other tile takes its list from the end: what it reads first, the CTAs have just read.
      const int32_t step = n % 2 == 1 ? 1 : -1;
      const int32_t* list = n % 2 == 1 ? list_ : list_ + count - 1;
      int32_t now = __ldg(list + step * min(gather_.owned_row(), keys.first - 1));
      int32_t position = keys.first + gather_.owned_row();
      const auto fetch = [&] {
        const bool mine = gather_.owned_row() < kKeys && position < count;
        const int32_t index = mine ? __ldg(list + step * position) : 0;
        position += kKeys;
        return index;
      };
      int32_t after = fetch(), before = 0;
      const int32_t look_ahead_at = n == 1 ? keys.tiles - 1 : 0;  // the order takes time to make
#pragma unroll 1
      for (int32_t j = 0; j < keys.tiles; ++j) {
        shared.k_empty[slot_.stage].wait(slot_.parity);
        gather_.load(k, p.k_row_bytes, now, k_tiles + slot_.stage * RowGather::kTileBytes);
        arrive_behind_copies(shared.k_full[slot_.stage]);
        if (j > 0) load_v(v, before);
        if (j == look_ahead_at) {
          find_next();
          publish(n);
        }
        slot_.advance();
        before = now;
        now = after;
        after = fetch();
      }
      load_v(v, before);
      if (p.has_rest) load_rest(n - 1);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");  // shared memory outlives the copies
  }

 private:
  static constexpr int kKeys = Traits::kKeys;
  using RowGather = typename Traits::RowGather;

  // Moves to the CTA's next tile that has keys.
  __device__ __forceinline__ void find_next() {
    while (true) {
      const Item item = item_at(taken_++);
      next_.count = 0;
      if (item.tile < 0) return;
      const TilePlace at(p, item.tile);
      next_ = {.batch = at.batch,
               .head = at.head,
               .first_row = at.in_head * Traits::kQueries + 64 * item.first_warpgroup,
               .count = at.count(p.op.columns),
               .warpgroups = item.warpgroups};
      list_ = p.op.columns.list(at.batch, at.head, at.group);
      if (next_.count > 0) return;
      write_empty_tile<Traits>(p, next_);
    }
  }
  // A tile, or some warpgroups of it.
  struct Item {
    int32_t tile;  // -1: none
    int32_t first_warpgroup, warpgroups;
  };
  // The CTA's n-th item.
  __device__ __forceinline__ Item item_at(int32_t n) {
    constexpr int32_t kAll = Traits::kWarpgroups, kFirst = Traits::kSplitWarpgroups;
    const auto cta = static_cast<int32_t>(blockIdx.x), grid = static_cast<int32_t>(gridDim.x);
    if (n > 0 && p.tiles > grid) {
      shared.order_ready.wait(0);
      const TileOrder& order = shared.order;
      if (!order.uniform) return {tile_in_order(order, n - 1), 0, kAll};
    }
    const int32_t number = cta + n * grid, beyond = number - p.rounds.whole;
    if (number >= p.rounds.items) return {-1, 0, 0};
    if (kFirst == 0 || beyond < 0) return {number, 0, kAll};
    const int32_t tile = p.rounds.whole + beyond / 2;
    return beyond % 2 == 0 ? Item{tile, 0, kFirst} : Item{tile, kFirst, kAll - kFirst};
  }
  // The n-th one after the first, or -1.
  static __device__ __forceinline__ int32_t tile_in_order(const TileOrder& order, int32_t n) {
    const LongFirst& plan = order.plan;
    const int32_t long_tiles = plan.long_tiles(order.place);
    if (n < long_tiles) return order.long_tiles[order.place + n * plan.grid];
    const int32_t number = plan.short_tile(order.place, n - long_tiles);
    if (number >= plan.short_later()) return -1;
    return tile_of(number, plan.grid, order.long_tiles, plan.long_later);
  }

  __device__ __forceinline__ void publish(uint32_t n) {
    if (threadIdx.x == 0) {
      const uint32_t slot = n % Traits::kWorkSlots;
      shared.work_empty[slot].wait(n / Traits::kWorkSlots % 2 ^ 1);
      shared.work[slot] = next_;
      shared.work_full[slot].arrive();
    }
    __syncwarp();
  }

  __device__ __forceinline__ void load_v(const char* v, int32_t index) {
    const auto at = slot_.before();
    const uint32_t v_tiles = cute::cast_smem_ptr_to_uint(shared.v);
    shared.v_empty[at.stage].wait(at.parity);
    gather_.load(v, p.v_row_bytes, index, v_tiles + at.stage * RowGather::kTileBytes);
    arrive_behind_copies(shared.v_full[at.stage]);
  }
  // The rest's rows of a tile, as one more K and V.
  __device__ __forceinline__ void load_rest(uint32_t n) {
    shared.work_full[n % Traits::kWorkSlots].wait(n / Traits::kWorkSlots % 2);
    const Work at = shared.work[n % Traits::kWorkSlots];
    const auto& rest = p.op.rest_out;
    const char* rows = static_cast<const char*>(rest.data) + 2 * rest.offset(at.batch, at.head, 0) +
                       gather_.chunk_bytes();
    const auto last = static_cast<int32_t>(p.op.attention.queries) - 1;
    const int32_t first = min(at.first_row + gather_.owned_row(), last);
    shared.k_empty[slot_.stage].wait(slot_.parity);
    gather_.load(rows, p.rest_row_bytes, first,
                 cute::cast_smem_ptr_to_uint(shared.k) + slot_.stage * RowGather::kTileBytes);
    arrive_behind_copies(shared.k_full[slot_.stage]);
    shared.v_empty[slot_.stage].wait(slot_.parity);
    if constexpr (Traits::kQueries > kKeys) {
      gather_.load(rows, p.rest_row_bytes, min(first + kKeys, last),
                   cute::cast_smem_ptr_to_uint(shared.v) + slot_.stage * RowGather::kTileBytes);
    }
    arrive_behind_copies(shared.v_full[slot_.stage]);
    slot_.advance();
  }
  static __device__ __forceinline__ void arrive_behind_copies(const Barrier& barrier) {
    cutlass::arch::cpasync_barrier_arrive_noinc(reinterpret_cast<const uint64_t*>(&barrier));
  }

  const ColumnSparseKernelParams& p;
  typename Traits::Shared& shared;
  const RowGather gather_;
  RingPosition<Traits::kStages> slot_{0, 1};  // the first pass over a ring waits for nothing
  int32_t taken_ = 0;
  Work next_{};
  const int32_t* list_ = nullptr;
};

}  // namespace chipmunk::cuda
