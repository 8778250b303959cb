// The consumers of column-sparse attention: turn the listed rows of K and V into weighted sums.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/attention/column_sparse_epilogue.cuh"
#include "cuda/attention/column_sparse_traits.cuh"
#include "cuda/device/softmax.cuh"

namespace chipmunk::cuda {

// One consumer warpgroup: 64 rows of every tile of the CTA.
//
// Scores and weights share registers, so a product starts when the one before has ended, but where
// there are registers for both (Traits::kOverlapped). The tensor cores stay busy because the
// warpgroups take turns, and because a tile's first product is issued before the tile before it is
// written out.
template <class Traits>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ColumnSparseKernelParams& params,
                                      typename Traits::Shared& storage, int warpgroup)
      : p(params), shared(storage), w(warpgroup) {}

  __device__ __forceinline__ void run() {
    if (p.tiles > static_cast<int32_t>(gridDim.x)) {  // while the first rows are on their way
      make_order<4 * Traits::kWarpgroups>(p, shared.order, shared.order_ready);
    }
    if (w >= wait_for_work(0)) return let_others_do(0);
    if (kTurns && w == 0) named_arrive(kTurn, 256);
    wait_for_queries(0);
    wait_for_k();
    multiply_qk();
    while (true) {
      const KeyTiles<kKeys> keys(work().count);
      OnlineSoftmax softmax;
      softmax.scale_log2 = p.scale_log2;
      finish_qk();
      release_k();
      if (keys.tiles == 1) take_next_queries();
      mask_from(keys.first);
      weigh_first(softmax);
      pack_weights();
      if (n_ > 0) release_out();
      forget_out();
#pragma unroll 1
      for (int32_t left = keys.tiles - 1; left > 0; --left) {
        if constexpr (Traits::kOverlapped) {
          wait_for_k();
          wait_for_v();
          take_turn();
          multiply_qk();
          start_pv(left < keys.tiles - 1);
          pass_turn();
          cute::warpgroup_wait<1>();
          take_scores();
          if (left == 1) take_next_queries();
          weigh(softmax);
          finish_pv();
          pack_weights();
          release_v();
        } else {
          multiply_pv(left < keys.tiles - 1);
          wait_for_k();
          finish_pv();
          multiply_qk();
          pass_turn();
          release_v();
          finish_qk();
          if (left == 1) take_next_queries();
          weigh(softmax);
        }
        release_k();
      }
      multiply_pv(keys.tiles > 1);
      if (last_ != 0) {
        finish_pv();
        pass_turn();
        release_v();
        write_out(softmax);
        return let_others_do(n_ + 1);
      }
      wait_for_queries(n_ + 1);
      wait_for_k();
      finish_pv();
      multiply_qk();
      pass_turn();
      release_v();
      write_out(softmax);
      if (thread() % 32 == 0) shared.work_empty[n_ % Traits::kWorkSlots].arrive();
      ++n_;
    }
  }

 private:
  // Adds the tile's rest, if there is one, and writes the result, both by way of one more tile of
  // K, behind the next tile's first, and one of V.
  __device__ __forceinline__ void write_out(OnlineSoftmax& softmax) {
    const auto in_k = slot_.after();
    // Not a loop invariant to the compiler, which would keep all the addresses in registers.
    int warp = static_cast<int>(threadIdx.x);
    asm volatile("" : "+r"(warp));
    warp = warp / 32 - 4;
    const StagedRows<Traits> staged{
        warp * 16 < kKeys
            ? reinterpret_cast<char*>(shared.k) + in_k.stage * Traits::RowGather::kTileBytes +
                  warp * 16 * 128
            : reinterpret_cast<char*>(shared.v) + slot_.stage * Traits::RowGather::kTileBytes +
                  (warp * 16 - kKeys) * 128};
    shared.k_full[in_k.stage].wait(in_k.parity);
    shared.v_full[slot_.stage].wait(slot_.parity);
    if (p.has_rest) add_rest<Traits>(p, rows(), staged, softmax, out_);
    write_rows<Traits>(p, rows(), staged, softmax, out_);
  }
  // When the copy engine has read the tile before; behind the release of this tile's first K.
  __device__ __forceinline__ void release_out() {
    if (thread() % 32 == 0) {
      cute::tma_store_wait<0>();
      shared.k_empty[slot_.stage].arrive();
      shared.v_empty[slot_.before().stage].arrive();
    }
    __syncwarp();
    slot_.advance();
  }

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
    if (wait_for_work(n) == 0) {
      cute::tma_store_wait<0>();  // shared memory outlives the copies
      return;
    }
    const KeyTiles<kKeys> keys(shared.work[n % Traits::kWorkSlots].count);
#pragma unroll 1
    for (int32_t j = 0; j < keys.tiles; ++j) {
      shared.k_full[slot_.stage].wait(slot_.parity);
      release_k();
      if (j == 0 && n > 0) release_out();
      shared.v_full[slot_.before().stage].wait(slot_.before().parity);
      release_v();
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
  }

  // The rows come through the generic proxy, and products read through the other.
  __device__ __forceinline__ void wait_for_k() {
    shared.k_full[slot_.stage].wait(slot_.parity);
    cutlass::arch::fence_view_async_shared();
  }
  __device__ __forceinline__ void wait_for_v() {
    const auto at = slot_.before();
    shared.v_full[at.stage].wait(at.parity);
    cutlass::arch::fence_view_async_shared();
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
    take_scores();
  }
  __device__ __forceinline__ void take_scores() {
    auto tSrS = scores_tensor();
    cute::warpgroup_fence_operand(tSrS);
  }
  __device__ __forceinline__ void release_k() {
    if (thread() % 32 == 0) shared.k_empty[slot_.stage].arrive();
    slot_.advance();
  }

  // Turns scores into weights. The first of a tile give the reference; others are weighed by the
  // reference as it is, and if that makes them too large they are computed again and raise it.
  __device__ __forceinline__ void weigh_first(OnlineSoftmax& softmax) {
    softmax.start(scores_);
    softmax.weigh(scores_, softmax.sum);
  }
  __device__ __forceinline__ void weigh(OnlineSoftmax& softmax) {
    constexpr float kMost = kMostWeight<typename Traits::Element>;
    float part[2];
    softmax.weigh(scores_, part);
    if constexpr (!Traits::kOverlapped) pack_weights();
    if (__any_sync(0xffffffffu, part[0] > kMost || part[1] > kMost)) {
      if constexpr (Traits::kOverlapped) finish_pv();  // before its sums are scaled
      multiply_qk_again();
      float factor[2];
      softmax.raise(scores_, factor);
#pragma unroll
      for (int i = 0; i < Traits::kHeadDim / 2; ++i) out_[i] *= factor[i >> 1 & 1];
      softmax.weigh(scores_, part);
      if constexpr (!Traits::kOverlapped) pack_weights();
    }
    softmax.add(part);
  }
  // A warp's rows of multiply_qk, by the warp alone. The queries come from global memory: those in
  // shared memory may be the next tile's.
  __device__ __forceinline__ void multiply_qk_again() {
    using Mma = typename Traits::WarpMma;
    int mine = thread();
    asm volatile("" : "+r"(mine));  // or its multiples would be kept in registers all the time
    const int lane = mine % 32;
    // What this lane points at: 8 rows of 16 bytes make a matrix, four matrices an operand.
    const int k_row = lane / 16 * 8 + lane % 8;
    const AttentionParams& op = p.op.attention;
    const RowPlace at = rows();
    const uint32_t* q[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t row = min(at.row + 8 * r, static_cast<int32_t>(op.queries) - 1);
      q[r] = reinterpret_cast<const uint32_t*>(static_cast<const MmaElement*>(op.q.data) +
                                               op.q.offset(at.batch, at.head, row)) +
             lane % 4;
    }
    const char* k =
        reinterpret_cast<const char*>(shared.k + slot_.stage * kKeys * Traits::kPadded) +
        k_row * 128;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) scores_[i] = 0.0f;
#pragma unroll 1
    for (int step = 0; step < Traits::kHeadDim / 16; ++step) {
      const int panel = step / 4, chunk = step % 4 * 2;
      const uint32_t a[4] = {__ldg(q[0] + step * 8), __ldg(q[1] + step * 8),
                             __ldg(q[0] + step * 8 + 4), __ldg(q[1] + step * 8 + 4)};
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
        uint32_t b[4];
        load_matrices(
            k + panel * (kKeys * 128) + i * 2048 + ((chunk + lane / 8 % 2) ^ (k_row & 7)) * 16, b);
        float* s = &scores_[8 * i];
        Mma::fma(s[0], s[1], s[2], s[3], a[0], a[1], a[2], a[3], b[0], b[1], s[0], s[1], s[2],
                 s[3]);
        Mma::fma(s[4], s[5], s[6], s[7], a[0], a[1], a[2], a[3], b[2], b[3], s[4], s[5], s[6],
                 s[7]);
      }
    }
    __syncwarp();  // one lane will tell that the keys have been read
  }
  static __device__ __forceinline__ void load_matrices(const char* from, uint32_t (&to)[4]) {
    cute::SM75_U32x4_LDSM_N::copy(*reinterpret_cast<const cute::uint128_t*>(from), to[0], to[1],
                                  to[2], to[3]);
  }

  // What the sums hold does not matter: keeps the compiler from saving it across the first softmax.
  __device__ __forceinline__ void forget_out() {
#pragma unroll
    for (int i = 0; i < Traits::kHeadDim / 2; ++i) asm volatile("" : "=f"(out_[i]));
  }

  // O (+)= P V, in this warpgroup's turn.
  __device__ __forceinline__ void multiply_pv(bool accumulate) {
    wait_for_v();
    take_turn();
    start_pv(accumulate);
  }
  __device__ __forceinline__ void start_pv(bool accumulate) {
    const auto at = slot_.before();
    typename Traits::MmaPV mma;
    const auto sV = cute::make_tensor(cute::make_smem_ptr(shared.v), typename Traits::LayoutV{});
    // (1, 1, keys / 16, stages); a product of head dim 96 looks at 96 of 128 columns.
    const auto tOrV = typename Traits::PaddedMmaPV{}.get_slice(0).partition_fragment_B(sV);
    auto tOrP = weights_tensor();
    auto tOrO = out_tensor();
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
  __device__ __forceinline__ void take_turn() {
    if constexpr (kTurns) named_sync(kTurn + w, 256);
  }
  __device__ __forceinline__ void pass_turn() {
    if constexpr (kTurns) named_arrive(kTurn + (w + 1 == work().warpgroups ? 0 : w + 1), 256);
  }

  __device__ __forceinline__ void mask_from(int32_t first) {
    if (first == kKeys) return;
    const int limit = first - thread() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      if (8 * (i >> 2) + (i & 1) >= limit) scores_[i] = -INFINITY;
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
                      cute::Shape<cute::Shape<cute::_2, cute::_2, cute::Int<Traits::kHeadDim / 8>>,
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
  RingPosition<Traits::kStages> slot_;  // of K; V runs one slot behind
  int32_t last_ = 0;  // 1: none after it has rows of this warpgroup; as a bool it would spill
  float scores_[kKeys / 2];
  uint32_t weights_[kKeys / 4];
  float out_[Traits::kHeadDim / 2];
};

}  // namespace chipmunk::cuda
