// The producer of column-sparse attention: gathers the listed rows of K and V.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/attention/column_sparse_epilogue.cuh"
#include "cuda/attention/column_sparse_traits.cuh"

namespace chipmunk::cuda {

// The producer warpgroup: for each of the CTA's tiles, K(0), then V(j - 1), K(j), or the other way
// round (Traits::kWantsKFirst), then the last V. Behind the next tile's K(0), one more stage of
// each is the tile's rest's and result's. Tiles without keys it writes by itself.
template <class Traits>
class Producer {
 public:
  __device__ __forceinline__ Producer(const ColumnSparseKernelParams& params,
                                      typename Traits::Shared& storage)
      : p(params), shared(storage) {}

  // Has L2 read what the CTA needs first, before anything else is done: by one warp, of a producer
  // that does nothing more. Of the queries only the first warpgroup's, as in ask_for_first_queries.
  __device__ __forceinline__ void prefetch_first() {
    const Blocks blocks = next_blocks();
    if (blocks.tile < 0) return;
    const TilePlace at(p, blocks.tile);
    const ColumnListsParams& c = p.op.columns;
    const auto lane = static_cast<int>(threadIdx.x % 32);
    if (lane < 8 && lane * 32 < c.capacity) {
      prefetch(c.list(at.batch, at.head, at.group) + lane * 32);
    }
    if (lane == 0) {
      prefetch(at.count_of(c));
      prefetch_queries(at, first_row(at, blocks));
    }
  }

  __device__ __forceinline__ void run() {
    find_next(0);
    shared.work_full[0].wait(0);
    ask_for_first_queries(/*of_first_warpgroup=*/true);
    uint32_t n = 0;
    for (;; ++n) {
      shared.work_full[n % Traits::kWorkSlots].wait(n / Traits::kWorkSlots % 2);
      const Work work = work_of(n);
      if (work.count == 0) break;
      const KeyTiles<kKeys> keys(work.count, Traits::kSharesRows && work.shares_rows);
      const RowGather gather = make_gather();
      const AttentionParams& a = p.op.attention;
      const int32_t kv_head = work.head / p.query_heads_per_kv_head;
      const char* k = static_cast<const char*>(a.k.data) + 2 * a.k.offset(work.batch, kv_head, 0) +
                      gather.chunk_bytes();
      const char* v = static_cast<const char*>(a.v.data) + 2 * a.v.offset(work.batch, kv_head, 0) +
                      gather.chunk_bytes();

      // This thread's column of a tile, two tiles ahead, by its position in the list. Slots past
      // the ragged tile's end repeat its last column: a row that may be read, with weight 0. (K's
      // are cleared instead, by the sixteen; V's too would cost long lists more than it brings
      // short ones.) Every other tile takes its list from the end: what it reads first, the CTAs
      // have just read.
      int32_t position = min(gather.owned_row(), keys.first - 1);
      const auto read = [&] {
        return __ldg(work_of(n).list + (n % 2 == 0 ? position : work_of(n).count - 1 - position));
      };
      int32_t now = read();
      position = gather.owned_row() < kKeys ? keys.first + gather.owned_row() : kNone;
      // Behind the list's end any row that may be read will do.
      const auto fetch = [&] {
        const int32_t index = position < work_of(n).count ? read() : Traits::kSharesRows ? now : 0;
        position += kKeys;
        return index;
      };
      int32_t after = fetch();
      load_k(gather, k, now, keys.first);
      if (n == 0) ask_for_first_queries(/*of_first_warpgroup=*/false);
      if (n > 0) hand_over(n - 1);
      slot_.advance();
      const int32_t ahead = n == 0 ? 0 : keys.tiles - 1;  // the order takes time to make
      int32_t more = keys.tiles - 1;
#pragma unroll 1
      while (true) {
        if (more == ahead) find_next(n + 1);
        if (more-- == 0) break;
        const int32_t before = now;
        now = after;
        after = fetch();
        if constexpr (Traits::kWantsKFirst) {
          load_k(gather, k, now);
          load_v(gather, v, before);
        } else {  // V's stage is free sooner, and its rows are needed sooner
          load_v(gather, v, before);
          load_k(gather, k, now);
        }
        slot_.advance();
      }
      prefetch_queries(n + 1);
      load_v(gather, v, now);
    }
    if (n > 0) hand_over(n - 1);
    asm volatile("cp.async.wait_all;" ::: "memory");  // shared memory outlives the copies
  }

 private:
  static constexpr int kKeys = Traits::kKeys;
  // A position behind every list: no card holds as many keys.
  static constexpr int32_t kNone = 1 << 30;
  using RowGather = typename Traits::RowGather;

  __device__ __forceinline__ const Work& work_of(uint32_t n) const {
    return shared.work[n % Traits::kWorkSlots];
  }
  // Not a loop invariant to the compiler, which would keep all of it in registers.
  static __device__ __forceinline__ RowGather make_gather() {
    int thread = static_cast<int>(threadIdx.x);
    asm volatile("" : "+r"(thread));
    return RowGather(thread);
  }

  // The first tile's queries, since the consumers are busy: the first warpgroup's, or the others',
  // which must not keep the first keys waiting: all CTAs ask DRAM for theirs at the same time.
  __device__ __forceinline__ void ask_for_first_queries(bool of_first_warpgroup) {
    if (threadIdx.x % 32 == 0) {
      const Work work = shared.work[0];
      const int warpgroup = static_cast<int>(threadIdx.x / 32);
      if (work.count > 0 && warpgroup < work.warpgroups && (warpgroup == 0) == of_first_warpgroup) {
        ask_for_queries<Traits>(p, shared, work, warpgroup);
      }
    }
    __syncwarp();
  }
  // Finds the CTA's n-th tile that has keys, and tells everybody.
  __device__ __forceinline__ void find_next(uint32_t n) {
    asm volatile("" : "+r"(n));  // as in make_gather
    Work work;
    while (true) {
      const Blocks blocks = next_blocks();
      work.count = 0;
      if (blocks.tile < 0) break;
      const TilePlace at(p, blocks.tile);
      work = {.list = p.op.columns.list(at.batch, at.head, at.group),
              .batch = at.batch,
              .head = at.head,
              .first_row = first_row(at, blocks),
              .count = at.count(p.op.columns),
              .warpgroups = blocks.count,
              .shares_rows = 0};
      if (Traits::kSharesRows) {
        const int64_t rows = p.op.attention.queries - work.first_row;
        if (rows <= 0) continue;
        work.shares_rows = blocks.count == 1 || rows <= 64;
        work.warpgroups = 2;
      }
      if (work.count > 0) break;
      write_empty_tile<Traits>(p, work);
    }
    if (threadIdx.x == 0) {
      const uint32_t slot = n % Traits::kWorkSlots;
      shared.work_empty[slot].wait(n / Traits::kWorkSlots % 2 ^ 1);
      shared.work[slot] = work;
      shared.work_full[slot].arrive();
    }
    __syncwarp();
  }
  // Some blocks of 64 rows of a tile.
  struct Blocks {
    int32_t tile;  // -1: none
    int32_t first, count;
  };
  static __device__ __forceinline__ int32_t first_row(const TilePlace& at, const Blocks& blocks) {
    return at.in_head * Traits::kQueries + 64 * blocks.first;
  }
  // What comes next. Where warpgroups share rows, which takes twice the loads, a tile comes in two
  // parts, and half of the CTAs start with the small ones.
  __device__ __forceinline__ Blocks next_blocks() {
    while (true) {
      const int32_t half = Traits::kSharesRows ? taken_ % 2 : 0;
      const Item item = item_at(Traits::kSharesRows ? taken_ / 2 : taken_);
      ++taken_;
      if (item.tile < 0) return {-1, 0, 0};
      const bool whole = item.part == Part::kWhole;
      if (whole && !Traits::kSharesRows) return {item.tile, 0, Traits::kRowBlocks};
      if (!whole && half != 0) continue;  // a part is an item by itself
      const bool large =
          whole ? half == static_cast<int32_t>(blockIdx.x % 2) : item.part == Part::kLarge;
      return large ? Blocks{item.tile, 0, 2} : Blocks{item.tile, 2, 1};
    }
  }
  // The CTA's n-th item.
  __device__ __forceinline__ Item item_at(int32_t n) {
    const auto cta = static_cast<int32_t>(blockIdx.x), grid = static_cast<int32_t>(gridDim.x);
    if (n > 0 && p.tiles > grid) {
      shared.order_ready.wait(0);
      const TileOrder& order = shared.order;
      if (!order.uniform) return {tile_in_order(order, n - 1), Part::kWhole};
    }
    return p.rounds.item(cta, n, grid);
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

  static __device__ __forceinline__ void prefetch(const int32_t* from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from) : "memory");
  }
  // 64 rows of a head's queries, by one thread.
  template <class Head>
  __device__ __forceinline__ void prefetch_queries(const Head& at, int32_t row) const {
#pragma unroll
    for (int panel = 0; panel < Traits::kPadded / 64; ++panel) {
      cute::SM90_TMA_LOAD_4D::PREFETCH::copy(&p.q, panel * 64, row, at.head, at.batch);
    }
  }
  // Has L2 read the n-th tile's queries, shortly before they are asked for.
  __device__ __forceinline__ void prefetch_queries(uint32_t n) const {
    if (threadIdx.x == 0) {
      const Work at = work_of(n);
      const int32_t boxes = at.count > 0 ? at.row_blocks() : 0;
#pragma unroll 1
      for (int32_t w = 0; w < boxes; ++w) prefetch_queries(at, at.first_row + w * 64);
    }
    __syncwarp();
  }
  // `rows` of the tile; the others are cleared.
  __device__ __forceinline__ void load_k(const RowGather& gather, const char* k, int32_t index,
                                         int32_t rows = kKeys) {
    shared.k_empty[slot_.stage].wait(slot_.parity);
    gather.load(k, p.k_row_bytes, index,
                cute::cast_smem_ptr_to_uint(shared.k) + slot_.stage * RowGather::kTileBytes, rows);
    arrive_behind_copies(shared.k_full[slot_.stage]);
  }
  __device__ __forceinline__ void load_v(const RowGather& gather, const char* v, int32_t index) {
    const auto at = slot_.before();
    const uint32_t v_tiles = cute::cast_smem_ptr_to_uint(shared.v);
    shared.v_empty[at.stage].wait(at.parity);
    gather.load(v, p.v_row_bytes, index, v_tiles + at.stage * RowGather::kTileBytes);
    arrive_behind_copies(shared.v_full[at.stage]);
  }
  // Hands the consumers one more tile of V, at slot_, and one of K, behind it, to write their n-th
  // tile's rows into, with the rest's rows if there is one and the rows are not shared.
  __device__ __forceinline__ void hand_over(uint32_t n) {
    const auto in_v = slot_;
    slot_.advance();
    const bool rest = p.has_rest && !(Traits::kSharesRows && work_of(n).shares_rows);
    shared.v_empty[in_v.stage].wait(in_v.parity);
    if (rest) {
      const uint32_t of_v =
          cute::cast_smem_ptr_to_uint(shared.v) + in_v.stage * RowGather::kTileBytes;
      load_rest<0, Traits::kRowsInV>(n, of_v);
      load_rest_lse(n, of_v + Traits::kRestLse);
      arrive_behind_copies(shared.v_full[in_v.stage]);
    } else {
      shared.v_full[in_v.stage].arrive();
    }
    shared.k_empty[slot_.stage].wait(slot_.parity);
    if (rest && Traits::kRowsInK > 0) {
      load_rest<Traits::kRowsInV, Traits::kRowsInK>(
          n, cute::cast_smem_ptr_to_uint(shared.k) + slot_.stage * RowGather::kTileBytes);
      arrive_behind_copies(shared.k_full[slot_.stage]);
    } else {
      shared.k_full[slot_.stage].arrive();
    }
  }
  // Rows kFirst and on of the n-th tile's rest, kRows of them.
  template <int kFirst, int kRows>
  __device__ __forceinline__ void load_rest(uint32_t n, uint32_t to) const {
    const RowGather gather = make_gather();
    const Work at = work_of(n);
    const auto& rest = p.op.rest_out;
    const char* rows = static_cast<const char*>(rest.data) + 2 * rest.offset(at.batch, at.head, 0) +
                       gather.chunk_bytes();
    const auto last = static_cast<int32_t>(p.op.attention.queries) - 1;
    gather.template load<kRows>(rows, p.rest_row_bytes,
                                min(at.first_row + kFirst + gather.owned_row(), last), to);
  }
  __device__ __forceinline__ void load_rest_lse(uint32_t n, uint32_t to) const {
    const Work at = work_of(n);
    const auto last = static_cast<int32_t>(p.op.attention.queries) - 1;
#pragma unroll 1
    for (int row = static_cast<int>(read_thread()); row < 64 * Traits::kWarpgroups; row += 128) {
      const float* lse = p.op.rest_lse.data +
                         p.op.rest_lse.offset(at.batch, at.head, min(at.first_row + row, last));
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to + 4 * row), "l"(lse)
                   : "memory");
    }
  }
  static __device__ __forceinline__ void arrive_behind_copies(const Barrier& barrier) {
    cutlass::arch::cpasync_barrier_arrive_noinc(reinterpret_cast<const uint64_t*>(&barrier));
  }

  const ColumnSparseKernelParams& p;
  typename Traits::Shared& shared;
  RingPosition<Traits::kStages> slot_{0, 1};  // the first pass over a ring waits for nothing
  int32_t taken_ = 0;
};

}  // namespace chipmunk::cuda
