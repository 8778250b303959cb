// The consumers of attention: turn tiles of K and V into weighted sums.
#pragma once

#include "cuda/attention/column_sums.cuh"
#include "cuda/attention/epilogue.cuh"
#include "cuda/attention/products.cuh"
#include "cuda/attention/rescore.cuh"
#include "cuda/attention/traits.cuh"

namespace chipmunk::cuda {

// Named barriers.
//
// | barrier           | arrive                                    | wait         | threads |
// |-------------------|-------------------------------------------|--------------|---------|
// | kQueriesFree + w  | warpgroup w, its last QK of a tile done   | warpgroup w  | 128     |
// | kTurn + w         | warpgroup w, and the one whose turn it was| warpgroup w  | 256     |
enum NamedBarrier : int { kQueriesFree = 1, kTurn = 4 };

// One consumer warpgroup: 64 rows of every tile of the CTA.
//
// Where scores and weights share registers, a product starts when the one before has ended, and the
// warpgroups take turns, to keep the tensor cores busy. Where there are registers for both
// (Traits::kOverlapped), two products are under way together, without turns. A tile's first product
// starts before the tile before it is written out.
template <class Traits>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const typename Traits::Params& params,
                                      typename Traits::Shared& storage, int warpgroup)
      : p(params), shared(storage), w(warpgroup), products_(storage) {}

  __device__ __forceinline__ void run() {
    if (kTurns && w == 0) named_arrive(kTurn, 256);
    if (wait_for_work(0) == 0) return;
    if (w < shared.work[0].warpgroups) {
      if (p.attention.query_rows != nullptr) {
        gather_queries<Traits>(p.attention, shared, shared.work[0], w);
      }
      wait_for_queries(0);
      wait_for_k();
      products_.start_qk(w, slot_.stage);
      if constexpr (Traits::kOverlapped) {
        run_tiles_overlapped();
      } else {
        run_tiles_in_turns();
      }
    } else {
      leave_tile();
    }
    // A CTA's tiles have ever fewer rows: the rest of them has none of this warpgroup.
    for (release_work(); wait_for_work(n_) > 0; release_work()) leave_tile();
    wait_for_stores();  // shared memory outlives the copies
  }

 private:
  static constexpr int kKeys = Traits::kKeys;
  static constexpr bool kTurns = Traits::kWarpgroups > 1 && !Traits::kOverlapped;

  // The CTA's tiles up to the last that has rows of this warpgroup. The first product of each is
  // under way when its turn comes.
  __device__ __forceinline__ void run_tiles_in_turns() {
    while (true) {
      OnlineSoftmax softmax;
      int32_t left = begin_tile(softmax);
#pragma unroll 1
      for (; left > 0; --left) {
        wait_for_v();
        take_turn();
        products_.start_pv(before_.stage);
        hand_over_sums();
        wait_for_k();
        products_.finish_pv();
        products_.start_qk(w, slot_.stage);
        pass_turn();
        release_v();
        products_.finish_qk();
        if (left == 1) take_next_queries();
        weigh(softmax);
        release_k();
      }
      wait_for_v();
      take_turn();
      products_.start_pv(before_.stage);
      hand_over_sums();
      if (last_ != 0) return end_last_tile(softmax);
      end_tile(softmax);
    }
  }
  __device__ __forceinline__ void run_tiles_overlapped() {
    while (true) {
      OnlineSoftmax softmax;
      int32_t left = begin_tile(softmax);
#pragma unroll 1
      for (; left > 0; --left) {
        shared.v_ring.wait(before_);
        wait_for_k();  // and a fence for both
        products_.start_qk(w, slot_.stage);
        products_.start_pv(before_.stage);
        products_.template finish_qk<1>();
        if (left == 1) take_next_queries();
        weigh(softmax);
        products_.finish_pv();
        products_.pack_weights();
        release_v();
        release_k();
      }
      wait_for_v();
      products_.start_pv(before_.stage);
      if (last_ != 0) return end_last_tile(softmax);
      end_tile(softmax);
    }
  }

  // The first tile of keys, whose product is under way; how many are left.
  __device__ __forceinline__ int32_t begin_tile(OnlineSoftmax& softmax) {
    const Work& work = shared.work[n_];
    const KeyTiles<kKeys> keys(work.count);
    next_turn_ = kTurn + (w + 1 == work.warpgroups ? 0 : w + 1);
    softmax.scale_log2 = p.scale_log2;
    float reference_lse[2];
    if constexpr (Traits::kSumsColumns) load_reference_lse(p, rows(), reference_lse);
    products_.finish_qk();
    release_k();
    if (keys.tiles == 1) take_next_queries();
    products_.mask_from(keys.first);
    softmax.start(products_.scores);
    softmax.weigh(products_.scores, softmax.sum);
    if constexpr (Traits::kSumsColumns) {
      factor_ = summand_factors(p, rows(), softmax, reference_lse);
      pack_and_sum();
    } else {
      products_.pack_weights();
    }
    if (n_ > 0) release_result();
    products_.clear_out();
    return keys.tiles - 1;
  }
  // The last PV is under way. The two ends share no code: where the compiler joined them, ptxas
  // would serialise the products (C7515).
  __device__ __forceinline__ void end_tile(OnlineSoftmax& softmax) {
    wait_for_queries(n_ + 1);
    softmax.finish();  // between two waits, lest it hold up the start of a product
    wait_for_k();
    products_.finish_pv();
    products_.start_qk(w, slot_.stage);
    pass_turn();
    release_v();
    write_out(softmax);
    release_work();
  }
  __device__ __forceinline__ void end_last_tile(OnlineSoftmax& softmax) {
    softmax.finish();
    products_.finish_pv();
    pass_turn();
    release_v();
    write_out(softmax);
  }

  // Weighs scores by the reference as it is. If that makes them too large they are computed again
  // and raise it.
  __device__ __forceinline__ void weigh(OnlineSoftmax& softmax) {
    constexpr float kMost = kMostWeight<typename Traits::Element>;
    float part[2];
    softmax.weigh(products_.scores, part);
    if constexpr (!Traits::kOverlapped && !Traits::kSumsColumns) products_.pack_weights();
    if (__any_sync(0xffffffffu, part[0] > kMost || part[1] > kMost)) {
      if constexpr (Traits::kOverlapped) products_.finish_pv();  // before its sums are scaled
      multiply_qk_again<Traits>(p.attention, rows(), shared.k_stage(slot_.stage), products_.scores);
      float factor[2];
      softmax.raise(products_.scores, factor);
      products_.scale_out(factor);
      softmax.weigh(products_.scores, part);
      if constexpr (!Traits::kOverlapped && !Traits::kSumsColumns) products_.pack_weights();
      if constexpr (Traits::kSumsColumns) {
        float reference_lse[2];
        load_reference_lse(p, rows(), reference_lse);
        factor_ = summand_factors(p, rows(), softmax, reference_lse);
      }
    }
    softmax.add(part);
    if constexpr (Traits::kSumsColumns) pack_and_sum();
  }

  // Adds the tile's rest, if there is one, and writes the result, both by way of one more tile of
  // V, and of K behind the next tile's first.
  __device__ __forceinline__ void write_out(OnlineSoftmax& softmax) {
    if constexpr (Traits::kMayKeepReferences) {
      if (p.keeps_references) return keep_references(softmax);
    }
    constexpr int kInV = Traits::kRowsInV;
    const auto in_k = slot_.after();
    char* const of_v = shared.v_stage(slot_.stage);
    const int warp_row = (static_cast<int>(read_thread() / 32) - 4) * 16;
    int32_t row = 0;  // of the caller's, of this lane's row of the warp; asked for early
    if (p.attention.query_rows != nullptr) {
      const int32_t position = first_row().row + static_cast<int32_t>(read_thread() % 16);
      row = row_of(p.attention, min(position, static_cast<int32_t>(p.attention.queries) - 1));
    }
    const auto wait = [&] {
      shared.v_ring.wait(slot_);
      if (warp_row >= kInV) shared.k_ring.wait(in_k);
    };
    const StagedRows<Traits> staged(warp_row < kInV
                                        ? of_v + warp_row * 128
                                        : shared.k_stage(in_k.stage) + (warp_row - kInV) * 128);
    float unit = softmax.unit(p.attention.softmax_scale);
    if (Traits::kMayHaveRest && p.rest_out.data != nullptr) {
      wait();
      const float* lses = reinterpret_cast<const float*>(of_v + Traits::kRestLse) + warp_row;
      const uint32_t mine = read_thread() % 32 / 4;
      const float rest_lse[2] = {lses[mine], lses[mine + 8]};
      merge_rows<Traits>(staged, rest_lse, softmax, unit, products_.out);
      if (softmax.exact) unit = 1.0f;
    } else {
      stage_rows<Traits>(staged, softmax, products_.out, wait);
    }
    const RowPlace at = rows();
    if (p.attention.query_rows == nullptr) {
      cute::tma_store_fence();
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        store_panels<Traits::kPanels>(p.out, staged.data(), staged.kPanelBytes, at);
      }
    } else {
      __syncwarp();
      scatter_rows<Traits>(staged, p.attention, first_row(), row);
    }
    __syncwarp();
    write_lse(p.attention, at, softmax, unit);
  }
  // Instead of a result: what exact column sums will refer to. The stages stay empty, but are
  // waited for, as they are released later.
  __device__ __forceinline__ void keep_references(const OnlineSoftmax& softmax) {
    shared.v_ring.wait(slot_);
    shared.k_ring.wait(slot_.after());
    keep_reference(p.attention, rows(), softmax);
  }
  // Frees the stages of the tile before's result, once the copy engine has read them; behind the
  // release of this tile's first K.
  __device__ __forceinline__ void release_result() {
    if (thread() % 32 == 0) {
      wait_for_stores();
      // A warp whose rows are in V has not waited for this stage of K. Without the wait, its
      // release would count for what the stage held before.
      shared.k_ring.wait(slot_);
      shared.k_ring.release(slot_);
      shared.v_ring.release(before_);
    }
    __syncwarp();
    advance();
  }

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x % 128); }
  // This thread's first row of the tile under way.
  __device__ __forceinline__ RowPlace rows() const {
    const int thread = static_cast<int>(read_thread() % 128);
    return shared.work[n_].place(64 * w + thread / 32 * 16 + thread % 32 / 4);
  }
  // The warp's first row.
  __device__ __forceinline__ RowPlace first_row() const {
    return shared.work[n_].place(64 * w + static_cast<int>(read_thread() % 128) / 32 * 16);
  }
  // How many warpgroups have rows of the n-th tile; 0 behind the last one.
  __device__ __forceinline__ int32_t wait_for_work(uint32_t n) {
    const Work& work = shared.work.wait(n);
    return work.count == 0 ? 0 : work.warpgroups;
  }
  // Frees what the others read of a tile without rows of this warpgroup.
  __device__ __forceinline__ void leave_tile() {
    const KeyTiles<kKeys> keys(shared.work[n_].count);
#pragma unroll 1
    for (int32_t j = 0; j < keys.tiles; ++j) {
      shared.k_ring.wait(slot_);
      release_k();
      if (j == 0 && n_ > 0) release_result();
      shared.v_ring.wait(before_);
      release_v();
      if constexpr (Traits::kSumsColumns) {
        const auto slot = sum_slot_.of_consumer();
        shared.sums.ring.acquire(slot);
        if (thread() % 32 == 0) shared.sums.ring.commit(slot);
        ++sum_slot_.count;
      }
    }
  }

  // When a tile's last scores are there.
  __device__ __forceinline__ void take_next_queries() {
    last_ = w >= wait_for_work(n_ + 1) ? 1 : 0;
    named_sync(kQueriesFree + w, 128);
    if (last_ == 0) {
      if (p.attention.query_rows != nullptr) {
        gather_queries<Traits>(p.attention, shared, shared.work[n_ + 1], w);
      } else if (thread() == 0) {
        ask_for_queries<Traits>(p, shared, shared.work[n_ + 1], w);
      }
    }
    __syncwarp();
  }
  __device__ __forceinline__ void wait_for_queries(uint32_t n) {
    shared.queries_full[w].wait(n % 2);
    if (p.attention.query_rows != nullptr) cutlass::arch::fence_view_async_shared();
    products_.hold_queries(w);
  }

  __device__ __forceinline__ void wait_for_k() {
    shared.k_ring.wait(slot_);
    fence_gathered_rows();
  }
  __device__ __forceinline__ void wait_for_v() {
    shared.v_ring.wait(before_);
    fence_gathered_rows();
  }
  // Gathered rows come through the generic proxy, and products read through the other, as the copy
  // engine writes.
  __device__ __forceinline__ void fence_gathered_rows() {
    if constexpr (!Traits::kByCopyEngine) cutlass::arch::fence_view_async_shared();
  }
  __device__ __forceinline__ void release_k() {
    if (thread() % 32 == 0) shared.k_ring.release(slot_);
    advance();
  }
  __device__ __forceinline__ void release_v() {
    if (thread() % 32 == 0) shared.v_ring.release(before_);
  }
  __device__ __forceinline__ void advance() {
    before_ = slot_;
    ++slot_;
  }
  __device__ __forceinline__ void release_work() {
    if (thread() % 32 == 0) shared.work.release(n_);
    ++n_;
  }

  __device__ __forceinline__ void take_turn() {
    if constexpr (kTurns) named_sync(kTurn + w, 256);
  }
  __device__ __forceinline__ void pass_turn() {
    if constexpr (kTurns) named_arrive(next_turn_, 256);
  }

  // Packs the weights of a tile of keys, and keeps this thread's part of its column sums.
  __device__ __forceinline__ void pack_and_sum() {
    products_.pack_and_add_rows(factor_, sums_);
    shared.sums.ring.acquire(sum_slot_.of_consumer());
  }
  // Hands the adding warp this warp's part of the column sums, while PV is under way: the scores'
  // registers are free then, and the warpgroup has nothing else to do.
  __device__ __forceinline__ void hand_over_sums() {
    if constexpr (Traits::kSumsColumns) {
      static_assert(!Traits::kOverlapped);
      auto& parts = shared.sums;
      const int warp = static_cast<int>(read_thread() / 32) - 4;
      const auto slot = sum_slot_.of_consumer();
      add_lanes<kKeys>(sums_, parts.pairs[slot.stage][warp]);
      __syncwarp();
      if (threadIdx.x % 32 == 0) parts.ring.commit(slot);
      ++sum_slot_.count;
    }
  }

  const typename Traits::Params& p;
  typename Traits::Shared& shared;
  const int w;
  uint32_t n_ = 0;                        // of the tile under way, among the CTA's
  RingPosition<Traits::kStages> slot_;    // of K
  RingPosition<Traits::kStages> before_;  // of V, which runs one slot behind
  int next_turn_ = 0;                     // whose turn comes next, of the tile under way
  int32_t last_ = 0;  // 1: the next tile has no rows of this warpgroup; as a bool it would spill
  // Of column sums alone.
  float2 factor_, sums_[kKeys / 8];
  SumPosition<Traits::kSumStages> sum_slot_;
  Products<Traits> products_;
};

}  // namespace chipmunk::cuda
