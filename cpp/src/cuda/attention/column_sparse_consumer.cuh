// The consumers of column-sparse attention: turn the listed rows of K and V into weighted sums.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/attention/column_sparse_epilogue.cuh"
#include "cuda/attention/column_sparse_products.cuh"
#include "cuda/attention/column_sparse_shared_rows.cuh"
#include "cuda/attention/column_sparse_traits.cuh"
#include "cuda/device/softmax.cuh"

namespace chipmunk::cuda {

// One consumer warpgroup: 64 rows of every tile of the CTA, or every other tile of keys of rows
// that two warpgroups share.
//
// Scores and weights share registers, so a product starts when the one before has ended, and the
// warpgroups take turns, to keep the tensor cores busy; where there are registers for both
// (Traits::kOverlapped), two products are under way together, without turns. A tile's first product
// is issued before the tile before it is written out.
template <class Traits>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ColumnSparseKernelParams& params,
                                      typename Traits::Shared& storage, int warpgroup)
      : p(params), shared(storage), w(warpgroup), products_(storage) {}

  __device__ __forceinline__ void run() {
    if (p.tiles > static_cast<int32_t>(gridDim.x)) {  // while the first rows are on their way
      make_order<4 * Traits::kWarpgroups>(p, shared.order, shared.order_ready);
    }
    if (w >= wait_for_work(0)) return let_others_do(0);
    if (kTurns && w == 0) named_arrive(kTurn, 256);
    wait_for_queries(0);
    if (starts_second(0)) {
      start_second();
    } else {
      wait_for_k();
      multiply_qk();
    }
    while (true) {
      const bool shares = shares_rows(n_);
      const KeyTiles<kKeys> keys(work().count, shares);
      const int32_t tiles = shares ? (keys.tiles + 1 - w) / 2 : keys.tiles;  // this warpgroup's
      next_turn_ = kTurn + (w + 1 == work().warpgroups ? 0 : w + 1);
      OnlineSoftmax softmax;
      softmax.scale_log2 = p.scale_log2;
      products_.finish_qk();
      release_k();
      if (tiles == 1) take_next_queries();
      products_.mask_from(shares && w == 1 ? keys.second : keys.first);
      weigh_first(softmax);
      products_.pack_weights();
      if (n_ > 0 && !(shares && w == 1)) release_out();
      products_.clear_out();
#pragma unroll 1
      for (int32_t left = tiles - 1; left > 0; --left) {
        if constexpr (Traits::kOverlapped) {
          const auto of_v = v_slot(false);
          shared.v_full[of_v.stage].wait(of_v.parity);
          wait_for_k();  // and a fence for both
          multiply_qk();
          products_.start_pv(of_v.stage);
          cute::warpgroup_wait<1>();
          products_.take_scores();
          if (left == 1) take_next_queries();
          weigh(softmax);
          products_.finish_pv();
          products_.pack_weights();
          release_v(false);
        } else {
          if (shares) skip_k();
          multiply_pv(shares);
          wait_for_k();
          products_.finish_pv();
          multiply_qk();
          pass_turn();
          release_v(shares);
          products_.finish_qk();
          if (left == 1) take_next_queries();
          weigh(softmax);
        }
        release_k();
      }
      const bool skips = shares && (keys.tiles - w) % 2 == 0;  // the last tile is the other's
      if (skips) skip_k();
      multiply_pv(skips);
      const bool second = last_ == 0 && starts_second(n_ + 1);
      if (last_ != 0 || second) {
        softmax.finish();
        products_.finish_pv();
        pass_turn();
        release_v(skips);
        if (shares) even_turns(keys.tiles);
        write_out(softmax);
        if (last_ != 0) return let_others_do(n_ + 1);
        release_work();
        wait_for_queries(n_);
        start_second();
        continue;
      }
      wait_for_queries(n_ + 1);
      softmax.finish();  // between two waits, lest it hold up the start of a product
      wait_for_k();
      products_.finish_pv();
      multiply_qk();
      pass_turn();
      release_v(skips);
      if (shares) even_turns(keys.tiles);
      write_out(softmax);
      release_work();
    }
  }

 private:
  // Adds the tile's rest, if there is one, and writes the result, both by way of one more tile of
  // K, behind the next tile's first, and one of V.
  __device__ __forceinline__ void write_out(OnlineSoftmax& softmax) {
    if constexpr (Traits::kSharesRows) {
      if (shares_rows(n_)) return write_shared_rows(softmax);
    }
    constexpr int kInV = Traits::kRowsInV;
    const int row = (static_cast<int>(read_thread() / 32) - 4) * 16;
    const StagedRows<Traits> staged(row < kInV ? of_v() + row * 128 : of_k() + (row - kInV) * 128);
    if (p.has_rest) {
      wait_for_out(row >= kInV);
      const float* lses = reinterpret_cast<const float*>(of_v() + Traits::kRestLse) + row;
      const uint32_t mine = read_thread() % 32 / 4;
      const float rest_lse[2] = {lses[mine], lses[mine + 8]};
      merge_rows(staged, rest_lse, softmax, products_.out);
    } else {
      stage_rows(staged, softmax, products_.out, [&] { wait_for_out(row >= kInV); });
    }
    const RowPlace at = rows();
    store_staged<Traits::kPadded / 64>(p, at, staged, 0);
    write_lse(p.op.attention, at, softmax);
  }
  __device__ __forceinline__ void write_shared_rows(OnlineSoftmax& softmax) {
    const int offset = static_cast<int>(read_thread() / 32 % 4) * (16 * 128);
    wait_for_out(true);
    if (w == 0) {
      write_half<Traits, 0>(p, rows(), of_v(), of_k(), offset, softmax, products_.out);
    } else {
      write_half<Traits, 1>(p, rows(), of_k(), of_v(), offset, softmax, products_.out);
    }
  }
  // The stages of K and V for a tile's result.
  __device__ __forceinline__ char* of_k() const {
    return reinterpret_cast<char*>(shared.k) + slot_.after().stage * Traits::RowGather::kTileBytes;
  }
  __device__ __forceinline__ char* of_v() const {
    return reinterpret_cast<char*>(shared.v) + slot_.stage * Traits::RowGather::kTileBytes;
  }
  __device__ __forceinline__ void wait_for_out(bool of_k_too) {
    shared.v_full[slot_.stage].wait(slot_.parity);
    const auto in_k = slot_.after();
    if (of_k_too) shared.k_full[in_k.stage].wait(in_k.parity);
  }
  // When the copy engine has read the tile before; behind the release of this tile's first K.
  __device__ __forceinline__ void release_out() {
    if (thread() % 32 == 0) {
      cute::tma_store_wait<0>();
      // A warp whose rows are in V has not waited for K's: sooner, it would release what was there.
      shared.k_full[slot_.stage].wait(slot_.parity);
      shared.k_empty[slot_.stage].arrive();
      shared.v_empty[before_.stage].arrive();
    }
    __syncwarp();
    advance();
  }

  static constexpr int kKeys = Traits::kKeys;
  static constexpr bool kTurns = Traits::kWarpgroups > 1 && !Traits::kOverlapped;

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x % 128); }
  // The tile under way.
  __device__ __forceinline__ const Work& work() const {
    return shared.work[n_ % Traits::kWorkSlots];
  }
  __device__ __forceinline__ RowPlace rows() const {
    const Work at = work();
    const int thread = static_cast<int>(read_thread() % 128);
    return {at.batch, at.head, first_row<Traits>(at, w) + thread / 32 * 16 + thread % 32 / 4};
  }
  // How many warpgroups have rows of the n-th tile; 0 behind the last one.
  __device__ __forceinline__ int32_t wait_for_work(uint32_t n) {
    shared.work_full[n % Traits::kWorkSlots].wait(n / Traits::kWorkSlots % 2);
    return warpgroups_of(n);
  }
  __device__ __forceinline__ int32_t warpgroups_of(uint32_t n) const {
    const Work& at = shared.work[n % Traits::kWorkSlots];
    return at.count == 0 ? 0 : at.warpgroups;
  }
  // Frees what others read of a tile without rows of this warpgroup, if there is one: its CTA's
  // last.
  __device__ __forceinline__ void let_others_do(uint32_t n) {
    if (!Traits::kMaySitOut || wait_for_work(n) == 0) {
      cute::tma_store_wait<0>();  // shared memory outlives the copies
      return;
    }
    const KeyTiles<kKeys> keys(shared.work[n % Traits::kWorkSlots].count, false);
#pragma unroll 1
    for (int32_t j = 0; j < keys.tiles; ++j) {
      shared.k_full[slot_.stage].wait(slot_.parity);
      release_k();
      if (j == 0 && n > 0) release_out();
      shared.v_full[before_.stage].wait(before_.parity);
      release_v(false);
    }
  }

  // When a tile's last scores are there.
  __device__ __forceinline__ void take_next_queries() {
    last_ = w >= wait_for_work(n_ + 1) ? 1 : 0;
    named_sync(kQueriesFree + w, 128);
    if (last_ == 0 && thread() == 0) {
      ask_for_queries<Traits>(p, shared, shared.work[(n_ + 1) % Traits::kWorkSlots], w);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void wait_for_queries(uint32_t n) {
    shared.queries_full[w].wait(n % 2);
    if constexpr (Traits::kQuerySteps > 0) products_.hold_queries(w);
  }

  // The rows come through the generic proxy, and products read through the other.
  __device__ __forceinline__ void wait_for_k() {
    shared.k_full[slot_.stage].wait(slot_.parity);
    cutlass::arch::fence_view_async_shared();
  }
  __device__ __forceinline__ void wait_for_v(bool skipped) {
    const auto at = v_slot(skipped);
    shared.v_full[at.stage].wait(at.parity);
    cutlass::arch::fence_view_async_shared();
  }

  __device__ __forceinline__ void release_k() {
    if (thread() % 32 == 0) shared.k_empty[slot_.stage].arrive();
    advance();
  }
  __device__ __forceinline__ void advance() {
    before_ = slot_;
    slot_.advance();
  }

  // Turns scores into weights. The first of a tile give the reference; others are weighed by the
  // reference as it is, and if that makes them too large they are computed again and raise it.
  __device__ __forceinline__ void weigh_first(OnlineSoftmax& softmax) {
    softmax.start(products_.scores);
    softmax.weigh(products_.scores, softmax.sum);
  }
  __device__ __forceinline__ void weigh(OnlineSoftmax& softmax) {
    constexpr float kMost = kMostWeight<typename Traits::Element>;
    float part[2];
    softmax.weigh(products_.scores, part);
    if constexpr (!Traits::kOverlapped) products_.pack_weights();
    if (__any_sync(0xffffffffu, part[0] > kMost || part[1] > kMost)) {
      if constexpr (Traits::kOverlapped) products_.finish_pv();  // before its sums are scaled
      products_.multiply_qk_again(p.op.attention, rows(), slot_.stage);
      float factor[2];
      softmax.raise(products_.scores, factor);
#pragma unroll
      for (int i = 0; i < Traits::kHeadDim / 2; ++i) products_.out[i] *= factor[i >> 1 & 1];
      softmax.weigh(products_.scores, part);
      if constexpr (!Traits::kOverlapped) products_.pack_weights();
    }
    softmax.add(part);
  }
  __device__ __forceinline__ void multiply_qk() { products_.multiply_qk(w, slot_.stage); }
  // O += P V, in this warpgroup's turn.
  __device__ __forceinline__ void multiply_pv(bool skipped) {
    wait_for_v(skipped);
    take_turn();
    products_.start_pv(v_slot(skipped).stage);
  }
  // Of V that goes with the last keys that this warpgroup has weighed: one slot behind K, two if
  // the K of another's keys has been skipped.
  __device__ __forceinline__ RingPosition<Traits::kStages> v_slot(bool skipped) const {
    return Traits::kSharesRows && skipped ? before_.before() : before_;
  }
  __device__ __forceinline__ void release_v(bool skipped) {
    if (thread() % 32 == 0) shared.v_empty[v_slot(skipped).stage].arrive();
    if (Traits::kSharesRows && skipped) skip_v();
  }

  // Of a tile whose rows the warpgroups share, the first one takes the tiles of keys 0, 2, .., the
  // second one 1, 3, ... Each frees the other's as soon as they are there.
  __device__ __forceinline__ bool shares_rows(uint32_t n) const {
    return Traits::kSharesRows && shared.work[n % Traits::kWorkSlots].shares_rows != 0;
  }
  __device__ __forceinline__ void skip_k() {
    shared.k_full[slot_.stage].wait(slot_.parity);
    release_k();
  }
  __device__ __forceinline__ void skip_v() {
    shared.v_full[before_.stage].wait(before_.parity);
    if (thread() % 32 == 0) shared.v_empty[before_.stage].arrive();
  }
  __device__ __forceinline__ bool starts_second(uint32_t n) const {
    return w == 1 && shares_rows(n);
  }
  // The first product of the second warpgroup; nothing of the tile before may be left to do.
  __device__ __forceinline__ void start_second() {
    skip_k();
    if (n_ > 0) release_out();
    wait_for_k();
    multiply_qk();
    skip_v();
  }
  // The first warpgroup has taken one turn more if the number of tiles is odd.
  __device__ __forceinline__ void even_turns(int32_t tiles) {
    if (w == 0 || tiles % 2 == 0) return;
    take_turn();
    pass_turn();
  }
  __device__ __forceinline__ void release_work() {
    if (thread() % 32 == 0) shared.work_empty[n_ % Traits::kWorkSlots].arrive();
    ++n_;
  }

  __device__ __forceinline__ void take_turn() {
    if constexpr (kTurns) named_sync(kTurn + w, 256);
  }
  __device__ __forceinline__ void pass_turn() {
    if constexpr (kTurns) named_arrive(next_turn_, 256);
  }

  const ColumnSparseKernelParams& p;
  typename Traits::Shared& shared;
  const int w;
  int32_t n_ = 0;                         // of the tile under way, among the CTA's
  RingPosition<Traits::kStages> slot_;    // of K
  RingPosition<Traits::kStages> before_;  // of V, which runs one slot behind
  int next_turn_ = 0;                     // whose turn comes next, of the tile under way
  int32_t last_ = 0;  // 1: none after it has rows of this warpgroup; as a bool it would spill
  Products<Traits> products_;
};

}  // namespace chipmunk::cuda
