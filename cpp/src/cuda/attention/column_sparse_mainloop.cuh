// The loops of column-sparse attention: a producer that gathers the listed rows of K and V, and
// consumers that turn them into weighted sums.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/attention/column_sparse_epilogue.cuh"
#include "cuda/attention/column_sparse_traits.cuh"
#include "cuda/device/softmax.cuh"

namespace chipmunk::cuda {

// Tiles of keys come ragged first: tile 0 of a list of `count` columns covers positions [0, first),
// so that every later tile is full.
template <int kKeys>
struct KeyTiles {
  int32_t tiles, first;
  __device__ explicit KeyTiles(int32_t count)
      : tiles((count + kKeys - 1) / kKeys), first(count - (tiles - 1) * kKeys) {}
};

// The producer warpgroup: for each of the CTA's tiles, K(0), then K(j), V(j - 1), then the last V.
// Tiles without keys it writes by itself.
template <class Traits>
class Producer {
 public:
  __device__ __forceinline__ Producer(const ColumnSparseKernelParams& params,
                                      typename Traits::Shared& storage)
      : p(params), shared(storage), gather_(static_cast<int>(threadIdx.x)) {}

  __device__ __forceinline__ void run() {
    next_tile_ = static_cast<int32_t>(blockIdx.x);
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
      const int32_t* list = list_;
      int32_t now = __ldg(list + min(gather_.owned_row(), keys.first - 1));
      int32_t position = keys.first + gather_.owned_row();
      const auto fetch = [&] {
        const bool mine = gather_.owned_row() < kKeys && position < count;
        const int32_t index = mine ? __ldg(list + position) : 0;
        position += kKeys;
        return index;
      };
      int32_t after = fetch(), before = 0;
#pragma unroll 1
      for (int32_t j = 0; j < keys.tiles; ++j) {
        shared.k_empty[slot_.stage].wait(slot_.parity);
        gather_.load(k, p.k_row_bytes, now, k_tiles + slot_.stage * RowGather::kTileBytes);
        arrive_behind_copies(shared.k_full[slot_.stage]);
        if (j == 0) {
          next_tile_ += static_cast<int32_t>(gridDim.x);
          find_next();
          publish(n);
          if (p.has_rest && next_.count > 0) prefetch_rest<Traits>(p, next_);
        } else {
          load_v(v, before);
        }
        slot_.advance();
        before = now;
        now = after;
        after = fetch();
      }
      load_v(v, before);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");  // shared memory outlives the copies
  }

 private:
  static constexpr int kKeys = Traits::kKeys;
  using RowGather = typename Traits::RowGather;

  // Moves to the first tile from next_tile_ on that has keys.
  __device__ __forceinline__ void find_next() {
    const ColumnListsParams& c = p.op.columns;
    const int32_t heads = static_cast<int32_t>(p.op.attention.query_heads);
    next_.count = 0;
    for (; next_tile_ < p.tiles; next_tile_ += static_cast<int32_t>(gridDim.x)) {
      const int32_t batch_head = next_tile_ / p.tiles_per_head;
      const int32_t in_head = next_tile_ % p.tiles_per_head;
      const int32_t group = in_head / p.tiles_per_group;
      next_.batch = batch_head / heads;
      next_.head = batch_head % heads;
      next_.first_row = in_head * Traits::kQueries;
      const int32_t count =
          __ldg(c.counts + next_.batch * c.counts_batch_stride + next_.head * c.counts_head_stride +
                group * c.counts_group_stride);
      next_.count = min(count, static_cast<int32_t>(c.capacity));
      list_ = c.list(next_.batch, next_.head, group);
      if (next_.count > 0) return;
      write_empty_tile<Traits>(p, next_);
      next_.count = 0;
    }
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
  static __device__ __forceinline__ void arrive_behind_copies(const Barrier& barrier) {
    cutlass::arch::cpasync_barrier_arrive_noinc(reinterpret_cast<const uint64_t*>(&barrier));
  }

  const ColumnSparseKernelParams& p;
  typename Traits::Shared& shared;
  const RowGather gather_;
  RingPosition<Traits::kStages> slot_{0, 1};  // the first pass over a ring waits for nothing
  int32_t next_tile_ = 0;
  Work next_{};
  const int32_t* list_ = nullptr;
};

// One consumer warpgroup: 64 rows of every tile of the CTA.
//
// Serial within the warpgroup: scores and weights share registers, so a product starts when the one
// before has ended. The tensor cores stay busy because the warpgroups take turns, and because a
// tile's first product is issued before the tile before it is written out.
template <class Traits>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ColumnSparseKernelParams& params,
                                      typename Traits::Shared& storage, int warpgroup)
      : p(params), shared(storage), w(warpgroup) {}

  __device__ __forceinline__ void run() {
    if (wait_for_work(0) == 0) return;
    if (kTurns && w == 0) named_arrive(kTurn, 256);
    if (thread() == 0) ask_for_queries(0);
    wait_for_queries();
    shared.k_full[slot_.stage].wait(slot_.parity);
    multiply_qk();
    while (true) {
      const KeyTiles<kKeys> keys(work().count);
      OnlineSoftmax softmax{.scale_log2 = p.scale_log2};
      if (p.has_rest) start_from_rest<Traits>(p, rows(), softmax, out_);
      finish_qk();
      if (keys.tiles == 1) take_next_queries();
      mask_from(keys.first);
      if (p.has_rest) {
        softmax.step(scores_, out_);
      } else {
        softmax.first(scores_);
      }
      pack_weights();
      bool accumulate = p.has_rest;
#pragma unroll 1
      for (int32_t left = keys.tiles - 1; left > 0; --left) {
        multiply_pv(accumulate);
        accumulate = true;
        shared.k_full[slot_.stage].wait(slot_.parity);
        finish_pv();
        multiply_qk();
        pass_turn();
        release_v();
        finish_qk();
        if (left == 1) take_next_queries();
        softmax.step(scores_, out_);
        pack_weights();
      }
      multiply_pv(accumulate);
      if (last_) {
        finish_pv();
        pass_turn();
        write_tile<Traits>(p, rows(), softmax, out_);
        return;
      }
      wait_for_queries();
      shared.k_full[slot_.stage].wait(slot_.parity);
      finish_pv();
      multiply_qk();
      pass_turn();
      release_v();
      write_tile<Traits>(p, rows(), softmax, out_);
      if (thread() % 32 == 0) shared.work_empty[n_ % Traits::kWorkSlots].arrive();
      ++n_;
    }
  }

 private:
  using MmaElement = typename Traits::MmaElement;
  static constexpr int kKeys = Traits::kKeys;
  static constexpr bool kTurns = Traits::kWarpgroups > 1;

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x % 128); }
  // The tile under way.
  __device__ __forceinline__ const Work& work() const {
    return shared.work[n_ % Traits::kWorkSlots];
  }
  __device__ __forceinline__ RowPlace rows() const {
    const Work at = work();
    return {at.batch, at.head, at.first_row + w * 64 + thread() / 32 * 16 + thread() % 32 / 4};
  }
  __device__ __forceinline__ int32_t wait_for_work(uint32_t n) {
    shared.work_full[n % Traits::kWorkSlots].wait(n / Traits::kWorkSlots % 2);
    return shared.work[n % Traits::kWorkSlots].count;
  }

  // By one thread, when no product reads the old queries any more.
  __device__ __forceinline__ void ask_for_queries(uint32_t n) {
    const Work at = shared.work[n % Traits::kWorkSlots];
    MmaElement* q = shared.q[w];
    shared.queries_full[w].arrive_and_expect_tx(sizeof(shared.q[w]));
#pragma unroll
    for (int panel = 0; panel < Traits::kPadded / 64; ++panel) {
      cute::SM90_TMA_LOAD_4D::copy(&p.q, reinterpret_cast<uint64_t*>(&shared.queries_full[w]),
                                   static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST),
                                   q + panel * 64 * 64, panel * 64, at.first_row + w * 64, at.head,
                                   at.batch);
    }
  }
  // Behind a tile's last scores.
  __device__ __forceinline__ void take_next_queries() {
    last_ = wait_for_work(n_ + 1) == 0;
    named_sync(kQueriesFree + w, 128);
    if (!last_ && thread() == 0) ask_for_queries(n_ + 1);
    __syncwarp();
  }
  __device__ __forceinline__ void wait_for_queries() {
    shared.queries_full[w].wait(queries_parity_);
    queries_parity_ ^= 1;
  }

  // S = Q K^T of the slot's keys.
  __device__ __forceinline__ void multiply_qk() {
    typename Traits::MmaQK mma;
    const auto thread_mma = mma.get_slice(0);
    // Not a loop invariant to the compiler, which would keep all its descriptors in registers.
    int mine = w;
    asm volatile("" : "+r"(mine));
    const auto sQ =
        cute::make_tensor(cute::make_smem_ptr(shared.q[mine]), typename Traits::LayoutQ{});
    const auto sK = cute::make_tensor(cute::make_smem_ptr(shared.k), typename Traits::LayoutK{});
    const auto tSrQ = thread_mma.partition_fragment_A(sQ);  // (1, 1, dim / 16) descriptors
    const auto tSrK = thread_mma.partition_fragment_B(sK);  // (1, 1, dim / 16, stages)
    auto tSrS = scores_tensor();
    cutlass::arch::fence_view_async_shared();  // the rows came through the generic proxy
    cute::warpgroup_fence_operand(tSrS);
    cute::warpgroup_arrive();
    mma.accumulate_ = cute::GMMA::ScaleOut::Zero;
#pragma unroll
    for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
      cute::gemm(mma, tSrQ(cute::_, cute::_, k), tSrK(cute::_, cute::_, k, slot_.stage), tSrS);
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
    }
    cute::warpgroup_commit_batch();
  }

  __device__ __forceinline__ void finish_qk() {
    cute::warpgroup_wait<0>();
    auto tSrS = scores_tensor();
    cute::warpgroup_fence_operand(tSrS);
    if (thread() % 32 == 0) shared.k_empty[slot_.stage].arrive();
    slot_.advance();
  }

  // O (+)= P V, in this warpgroup's turn.
  __device__ __forceinline__ void multiply_pv(bool accumulate) {
    const auto at = slot_.before();
    shared.v_full[at.stage].wait(at.parity);
    typename Traits::MmaPV mma;
    const auto sV = cute::make_tensor(cute::make_smem_ptr(shared.v), typename Traits::LayoutV{});
    const auto tOrV = mma.get_slice(0).partition_fragment_B(sV);  // (1, 1, keys / 16, stages)
    auto tOrP = weights_tensor();
    auto tOrO = out_tensor();
    cutlass::arch::fence_view_async_shared();
    if constexpr (kTurns) named_sync(kTurn + w, 256);
    cute::warpgroup_fence_operand(tOrO);
    fence_weights();
    cute::warpgroup_arrive();
    mma.accumulate_ = accumulate ? cute::GMMA::ScaleOut::One : cute::GMMA::ScaleOut::Zero;
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      cute::gemm(mma, tOrP(cute::_, cute::_, k), tOrV(cute::_, cute::_, k, at.stage), tOrO);
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
    }
    cute::warpgroup_commit_batch();
  }
  __device__ __forceinline__ void finish_pv() {
    cute::warpgroup_wait<0>();
    auto tOrO = out_tensor();
    cute::warpgroup_fence_operand(tOrO);
    fence_weights();
  }
  // Keeps the compiler from touching the registers of a product under way.
  __device__ __forceinline__ void fence_weights() {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) cute::warpgroup_fence_operand(weights_[i]);
  }
  __device__ __forceinline__ void release_v() {
    if (thread() % 32 == 0) shared.v_empty[slot_.before().stage].arrive();
  }
  __device__ __forceinline__ void pass_turn() {
    if constexpr (kTurns) named_arrive(kTurn + (w + 1 == Traits::kWarpgroups ? 0 : w + 1), 256);
  }

  __device__ __forceinline__ void mask_from(int32_t first) {
    if (first == kKeys) return;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      if (8 * (i >> 2) + thread() % 4 * 2 + (i & 1) >= first) scores_[i] = -INFINITY;
    }
  }
  __device__ __forceinline__ void pack_weights() {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      weights_[i] = pack_pair<typename Traits::Element>(scores_[2 * i], scores_[2 * i + 1]);
    }
  }

  // Registers as CuTe sees them. A row of scores and a row of weights hold the same columns.
  __device__ __forceinline__ auto scores_tensor() {
    return cute::make_tensor(
        &scores_[0],
        cute::make_layout(cute::Shape<cute::Shape<cute::_2, cute::_2, cute::Int<kKeys / 8>>,
                                      cute::_1, cute::_1>{}));
  }
  __device__ __forceinline__ auto out_tensor() {
    return cute::make_tensor(
        &out_[0], cute::make_layout(
                      cute::Shape<cute::Shape<cute::_2, cute::_2, cute::Int<Traits::kPadded / 8>>,
                                  cute::_1, cute::_1>{}));
  }
  __device__ __forceinline__ auto weights_tensor() {
    return cute::make_tensor(
        reinterpret_cast<MmaElement*>(&weights_[0]),
        cute::make_layout(cute::Shape<cute::Shape<cute::_2, cute::_2, cute::_2>, cute::_1,
                                      cute::Int<kKeys / 16>>{}));
  }

  const ColumnSparseKernelParams& p;
  typename Traits::Shared& shared;
  const int w;
  int32_t n_ = 0;                       // of the tile under way, among the CTA's
  bool last_ = false;                   // there is none after it
  RingPosition<Traits::kStages> slot_;  // of K; V runs one slot behind
  uint32_t queries_parity_ = 0;
  float scores_[kKeys / 2];
  uint32_t weights_[kKeys / 4];
  float out_[Traits::kPadded / 2];
};

}  // namespace chipmunk::cuda
