// The producer of column-sparse attention: gathers the listed rows of K and V.
#pragma once

#include <cute/arch/cluster_sm90.hpp>

#include "cuda/attention/epilogue.cuh"
#include "cuda/attention/sparse/tile_order.cuh"
#include "cuda/attention/sparse/traits.cuh"

namespace chipmunk::cuda {

// This thread's columns of a list, one for each tile of keys, two tiles ahead of the gather. Slots
// past the ragged tile's end repeat its last column: a row that may be read, with weight 0. (Those
// of K are cleared instead, by the sixteen. Of V that would cost long lists more than it saves
// short ones.)
template <class Traits>
class ListedRows {
 public:
  __device__ __forceinline__ ListedRows(const ListWork& work, int32_t owned_row, int32_t ragged)
      : position_(min(owned_row, ragged - 1)) {
    now = read(work);
    position_ = owned_row < Traits::kKeys ? ragged + owned_row : kNone;
    after_ = fetch(work);
  }
  __device__ __forceinline__ void advance(const ListWork& work) {
    before = now;
    now = after_;
    after_ = fetch(work);
  }

  int32_t now, before;  // rows of K and V

 private:
  // A position behind every list: no card holds as many keys.
  static constexpr int32_t kNone = 1 << 30;

  __device__ __forceinline__ int32_t read(const ListWork& work) const {
    return __ldg(work.list + (work.backwards != 0 ? work.count - 1 - position_ : position_));
  }
  // Behind the list's end any row that may be read will do.
  __device__ __forceinline__ int32_t fetch(const ListWork& work) {
    const int32_t index = position_ < work.count ? read(work) : 0;
    position_ += Traits::kKeys;
    return index;
  }

  int32_t position_, after_;
};

// The producer warpgroup: for each of the CTA's tiles, K(0), then V(j - 1), K(j), or the other way
// round where both products start together, then the last V. Behind the next tile's K(0), one more
// stage of each is for the tile's rest and result. Tiles without keys it writes by itself.
template <class Traits>
class Producer {
 public:
  __device__ __forceinline__ Producer(const ColumnSparseKernelParams& params,
                                      typename Traits::Shared& storage)
      : p(params), shared(storage), order_(params) {}

  __device__ __forceinline__ void run() {
    find_next(0);
    shared.work.wait(0);
    ask_for_first_queries(/*of_first_warpgroup=*/true);
    uint32_t n = 0;
    for (;; ++n) {
      const ListWork& work = shared.work.wait(n);
      if (work.count == 0) break;
      const KeyTiles<kKeys> keys(work.count);
      const RowGather gather = make_gather();
      const AttentionParams& a = p.attention;
      ListedRows<Traits> rows(work, gather.owned_row(), keys.first);
      load_k(gather, rows_of_head(a.k, n, gather), rows.now, keys.first);
      if (n == 0) ask_for_first_queries(/*of_first_warpgroup=*/false);
      if (n > 0) hand_over(n - 1);
      ++slot_;
      find_next(n + 1);
      // Not sooner: registers are short until here.
      const char* k = rows_of_head(a.k, n, gather);
      const char* v = rows_of_head(a.v, n, gather);
#pragma unroll 1
      for (int32_t left = keys.tiles - 1; left > 0; --left) {
        rows.advance(shared.work[n]);
        if constexpr (Traits::kOverlapped) {
          load_k(gather, k, rows.now);
          load_v(gather, v, rows.before);
        } else {  // V's stage is free sooner, and its rows are needed sooner
          load_v(gather, v, rows.before);
          load_k(gather, k, rows.now);
        }
        ++slot_;
      }
      prefetch_queries(n + 1);
      load_v(gather, v, rows.now);
    }
    if (n > 0) hand_over(n - 1);
    asm volatile("cp.async.wait_all;" ::: "memory");  // shared memory outlives the copies
  }

 private:
  static constexpr int kKeys = Traits::kKeys;
  using RowGather = typename Traits::RowGather;

  // Not a loop invariant to the compiler, which would keep all of it in registers.
  static __device__ __forceinline__ RowGather make_gather() {
    return RowGather(static_cast<int>(read_thread()));
  }
  // Row 0 of a head, from this thread's chunk on.
  template <class Rows>
  static __device__ __forceinline__ const char* rows_of(const Rows& rows, int32_t batch,
                                                        int32_t head, const RowGather& gather) {
    return static_cast<const char*>(rows.data) + 2 * rows.offset(batch, head, 0) +
           gather.chunk_bytes();
  }

  // Of the n-th tile's keys or values.
  template <class Rows>
  __device__ __forceinline__ const char* rows_of_head(const Rows& rows, uint32_t n,
                                                      const RowGather& gather) const {
    const Work& at = shared.work[n];
    return rows_of(rows, at.batch, at.head / p.query_heads_per_kv_head, gather);
  }

  // The first tile's queries, since the consumers are busy: the first warpgroup's, or the others',
  // which must not keep the first keys waiting: all CTAs ask DRAM for theirs at the same time.
  __device__ __forceinline__ void ask_for_first_queries(bool of_first_warpgroup) {
    if (threadIdx.x % 32 == 0 && p.attention.query_rows == nullptr) {
      const Work& work = shared.work[0];
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
    const ColumnListsParams& columns = p.columns;
    ListWork work;
    while (true) {
      const TileBlocks tile = order_.next();
      work.count = 0;
      if (tile.tile < 0) break;
      // Of a wrong order alone: a warpgroup that has left does not come back (Consumer::run).
      if (n > 0 && tile.blocks.count > shared.work[n - 1].warpgroups) continue;
      const TilePlace at(p, tile.tile);
      const int32_t group = at.in_head / p.tiles_per_group;
      work.list = columns.list(at.batch, at.head, group);
      work.batch = at.batch;
      work.head = at.head;
      work.first_row = at.in_head * Traits::kQueries + 64 * tile.blocks.first;
      work.count =
          min(columns.count(at.batch, at.head, group), static_cast<int32_t>(columns.capacity));
      work.warpgroups = tile.blocks.count;
      // Every other round of tiles reads its lists from the end: what it reads first, the CTAs have
      // just read. By the tile alone, so that results do not depend on the order.
      work.backwards = tile.tile / static_cast<int32_t>(gridDim.x) % 2;
      if (work.count > 0) break;
      write_empty_tile<Traits>(p, work);
    }
    if (threadIdx.x == 0) shared.work.publish(n, work);
    __syncwarp();
  }
  // Has L2 read the n-th tile's queries, shortly before they are asked for.
  __device__ __forceinline__ void prefetch_queries(uint32_t n) const {
    if (p.attention.query_rows != nullptr) {
      prefetch_query_rows(n);
    } else if (threadIdx.x == 0) {
      const Work& work = shared.work[n];
      const int32_t boxes = work.count > 0 ? work.warpgroups : 0;
#pragma unroll 1
      for (int32_t w = 0; w < boxes; ++w) {
        prefetch_panels<Traits::kPanels>(p.q, work.place(64 * w));
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void prefetch_query_rows(uint32_t n) const {
    const AttentionParams& a = p.attention;
    const Work& work = shared.work.wait(n);  // that thread 0 has found
    const int32_t rows = work.count > 0 ? 64 * work.warpgroups : 0;
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(read_thread()); i < rows; i += 128) {
      const int32_t row = row_of(a, min(work.first_row + i, last_row()));
      const char* from =
          static_cast<const char*>(a.q.data) + 2 * a.q.offset(work.batch, work.head, row);
#pragma unroll
      for (int byte = 0; byte < 2 * Traits::kHeadDim; byte += 128) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + byte));
      }
    }
  }

  // `rows` of the tile; the others are cleared.
  __device__ __forceinline__ void load_k(const RowGather& gather, const char* k, int32_t index,
                                         int32_t rows = kKeys) {
    shared.k_ring.acquire(slot_);
    gather.load(k, p.k_row_bytes, index, address(shared.k_stage(slot_.stage)), rows);
    shared.k_ring.commit_copies(slot_);
  }
  // V runs one slot behind K.
  __device__ __forceinline__ void load_v(const RowGather& gather, const char* v, int32_t index) {
    const auto at = slot_.before();
    shared.v_ring.acquire(at);
    gather.load(v, p.v_row_bytes, index, address(shared.v_stage(at.stage)));
    shared.v_ring.commit_copies(at);
  }
  // Hands the consumers one more stage of V, at slot_, and one of K, behind it, to write their n-th
  // tile's rows into; with the rest's rows if there is one.
  __device__ __forceinline__ void hand_over(uint32_t n) {
    const auto in_v = slot_;
    ++slot_;
    shared.v_ring.acquire(in_v);
    if (p.rest_out.data != nullptr) {
      const uint32_t stage = address(shared.v_stage(in_v.stage));
      load_rest<0, Traits::kRowsInV>(n, stage);
      load_rest_lse(n, stage + Traits::kRestLse);
      shared.v_ring.commit_copies(in_v);
    } else {
      shared.v_ring.commit(in_v);
    }
    shared.k_ring.acquire(slot_);
    if (p.rest_out.data != nullptr && Traits::kRowsInK > 0) {
      load_rest<Traits::kRowsInV, Traits::kRowsInK>(n, address(shared.k_stage(slot_.stage)));
      shared.k_ring.commit_copies(slot_);
    } else {
      shared.k_ring.commit(slot_);
    }
  }
  // Rows kFirst and on of the n-th tile's rest, kRows of them.
  template <int kFirst, int kRows>
  __device__ __forceinline__ void load_rest(uint32_t n, uint32_t to) const {
    const RowGather gather = make_gather();
    const Work& at = shared.work[n];
    const auto& rest = p.rest_out;
    const char* rows = rows_of(rest, at.batch, at.head, gather);
    const int32_t position = min(at.first_row + kFirst + gather.owned_row(), last_row());
    gather.template load<kRows>(rows, p.rest_row_bytes, row_of(p.attention, position), to);
  }
  __device__ __forceinline__ void load_rest_lse(uint32_t n, uint32_t to) const {
    const Work& at = shared.work[n];
    const auto& rest = p.rest_lse;
#pragma unroll 1
    for (int row = static_cast<int>(read_thread()); row < Traits::kQueries; row += 128) {
      const int32_t position = min(at.first_row + row, last_row());
      const float* lse = rest.data + rest.offset(at.batch, at.head, row_of(p.attention, position));
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to + 4 * row), "l"(lse)
                   : "memory");
    }
  }
  __device__ __forceinline__ int32_t last_row() const {
    return static_cast<int32_t>(p.attention.queries) - 1;
  }
  static __device__ __forceinline__ uint32_t address(const char* in_shared) {
    return cute::cast_smem_ptr_to_uint(in_shared);
  }

  const ColumnSparseKernelParams& p;
  typename Traits::Shared& shared;
  RingPosition<Traits::kStages> slot_ = RingPosition<Traits::kStages>::of_producer();  // of K
  TileOrder<Traits::kConfig.warpgroups> order_;
};

}  // namespace chipmunk::cuda
