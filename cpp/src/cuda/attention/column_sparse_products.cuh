// The products of a consumer warpgroup of column-sparse attention, and the registers that they
// fill.
#pragma once

#include <algorithm>
#include <cute/arch/copy_sm75.hpp>

#include "cuda/attention/column_sparse_epilogue.cuh"
#include "cuda/attention/column_sparse_traits.cuh"

namespace chipmunk::cuda {

// 64 rows of scores and weights for one tile of keys, and of output. A product is started, and its
// operands and results are not to be touched before it is finished.
template <class Traits>
class Products {
 public:
  __device__ __forceinline__ explicit Products(typename Traits::Shared& storage)
      : shared(storage) {}

  // S = Q K^T, by warpgroup w.
  __device__ __forceinline__ void multiply_qk(int w, int stage) {
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
    if constexpr (kQuerySteps > 0) {
      typename Traits::MmaOfHeldQueries mma_of_held;
      mma_of_held.accumulate_ = cute::GMMA::ScaleOut::Zero;
      auto tSrHeld = held_queries_tensor();
#pragma unroll
      for (int k = 0; k < kQuerySteps; ++k) {
        cute::gemm(mma_of_held, tSrHeld(cute::_, cute::_, k), tSrK(cute::_, cute::_, k, stage),
                   tSrS);
        mma_of_held.accumulate_ = cute::GMMA::ScaleOut::One;
      }
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
    }
#pragma unroll
    for (int k = kQuerySteps; k < Traits::kHeadDim / 16; ++k) {
      cute::gemm(mma, tSrQ(cute::_, cute::_, k), tSrK(cute::_, cute::_, k, stage), tSrS);
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
    }
    cute::warpgroup_commit_batch();
  }
  // What a warp holds of its queries: the columns of the first steps, as many as there are
  // registers for. No product may be reading the old ones.
  __device__ __forceinline__ void hold_queries(int w) {
    const SwizzledRows<64> rows(reinterpret_cast<char*>(shared.q[w]) +
                                read_thread() / 32 % 4 * (16 * 128));
#pragma unroll
    for (int k = 0; k < kQuerySteps; ++k) rows.read(k, held_queries[k]);
  }

  __device__ __forceinline__ void finish_qk() {
    cute::warpgroup_wait<0>();
    take_scores();
  }
  __device__ __forceinline__ void take_scores() {
    auto tSrS = scores_tensor();
    cute::warpgroup_fence_operand(tSrS);
  }
  // A warp's rows of multiply_qk, by the warp alone. The queries come from global memory: those in
  // shared memory may be the next tile's.
  __device__ __forceinline__ void multiply_qk_again(const AttentionParams& op, const RowPlace& at,
                                                    int stage) {
    using Mma = typename Traits::WarpMma;
    const int lane = static_cast<int>(read_thread() % 32);
    // What this lane points at: 8 rows of 16 bytes make a matrix, four matrices an operand.
    const int k_row = lane / 16 * 8 + lane % 8;
    const uint32_t* q[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t row = min(at.row + 8 * r, static_cast<int32_t>(op.queries) - 1);
      q[r] = reinterpret_cast<const uint32_t*>(static_cast<const MmaElement*>(op.q.data) +
                                               op.q.offset(at.batch, at.head, row)) +
             lane % 4;
    }
    const char* k =
        reinterpret_cast<const char*>(shared.k + stage * kKeys * Traits::kPadded) + k_row * 128;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) scores[i] = 0.0f;
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
        float* s = &scores[8 * i];
        Mma::fma(s[0], s[1], s[2], s[3], a[0], a[1], a[2], a[3], b[0], b[1], s[0], s[1], s[2],
                 s[3]);
        Mma::fma(s[4], s[5], s[6], s[7], a[0], a[1], a[2], a[3], b[2], b[3], s[4], s[5], s[6],
                 s[7]);
      }
    }
    __syncwarp();  // one lane will tell that the keys have been read
  }

  // O += P V.
  __device__ __forceinline__ void start_pv(int stage) {
    typename Traits::MmaPV mma;
    const auto sV = cute::make_tensor(cute::make_smem_ptr(shared.v), typename Traits::LayoutV{});
    // (1, 1, keys / 16, stages); a product of head dim 96 looks at 96 of 128 columns.
    const auto tOrV = typename Traits::PaddedMmaPV{}.get_slice(0).partition_fragment_B(sV);
    auto tOrP = weights_tensor();
    auto tOrO = out_tensor();
    cute::warpgroup_fence_operand(tOrO);
    fence_weights();
    cute::warpgroup_arrive();
    mma.accumulate_ = cute::GMMA::ScaleOut::One;
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      cute::gemm(mma, tOrP(cute::_, cute::_, k), tOrV(cute::_, cute::_, k, stage), tOrO);
    }
    cute::warpgroup_commit_batch();
  }
  __device__ __forceinline__ void finish_pv() {
    cute::warpgroup_wait<0>();
    auto tOrO = out_tensor();
    cute::warpgroup_fence_operand(tOrO);
    fence_weights();
  }

  __device__ __forceinline__ void mask_from(int32_t first) {
    if (first == kKeys) return;
    const int limit = first - static_cast<int>(threadIdx.x % 4) * 2;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      if (8 * (i >> 2) + (i & 1) >= limit) scores[i] = -INFINITY;
    }
  }
  __device__ __forceinline__ void pack_weights() {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      weights[i] = pack_pair<typename Traits::Element>(scores[2 * i], scores[2 * i + 1]);
    }
  }
  // Before a tile's first PV. A first PV that ignored what they hold, by a flag, would to the
  // compiler be one that reads them, and keep them from any other use across a tile's end.
  __device__ __forceinline__ void clear_out() {
#pragma unroll
    for (int i = 0; i < Traits::kHeadDim / 2; ++i) {
      out[i] = 0.0f;
    }
  }

  float scores[Traits::kKeys / 2];
  uint32_t weights[Traits::kKeys / 4];
  float out[Traits::kHeadDim / 2];
  uint32_t held_queries[std::max(1, Traits::kQuerySteps)][4];

 private:
  using MmaElement = typename Traits::MmaElement;
  static constexpr int kKeys = Traits::kKeys;
  static constexpr int kQuerySteps = Traits::kQuerySteps;

  static __device__ __forceinline__ void load_matrices(const char* from, uint32_t (&to)[4]) {
    cute::SM75_U32x4_LDSM_N::copy(*reinterpret_cast<const cute::uint128_t*>(from), to[0], to[1],
                                  to[2], to[3]);
  }
  // Keeps the compiler from touching the registers of a product under way.
  __device__ __forceinline__ void fence_weights() {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) cute::warpgroup_fence_operand(weights[i]);
  }

  // Registers as CuTe sees them. A row of scores and a row of weights hold the same columns.
  __device__ __forceinline__ auto scores_tensor() {
    return cute::make_tensor(
        &scores[0],
        cute::make_layout(cute::Shape<cute::Shape<cute::_2, cute::_2, cute::Int<kKeys / 8>>,
                                      cute::_1, cute::_1>{}));
  }
  __device__ __forceinline__ auto out_tensor() {
    return cute::make_tensor(
        &out[0], cute::make_layout(
                     cute::Shape<cute::Shape<cute::_2, cute::_2, cute::Int<Traits::kHeadDim / 8>>,
                                 cute::_1, cute::_1>{}));
  }
  __device__ __forceinline__ auto weights_tensor() {
    return cute::make_tensor(
        reinterpret_cast<MmaElement*>(&weights[0]),
        cute::make_layout(cute::Shape<cute::Shape<cute::_2, cute::_2, cute::_2>, cute::_1,
                                      cute::Int<kKeys / 16>>{}));
  }

  __device__ __forceinline__ auto held_queries_tensor() {
    return cute::make_tensor(
        reinterpret_cast<MmaElement*>(&held_queries[0]),
        cute::make_layout(cute::Shape<cute::Shape<cute::_2, cute::_2, cute::_2>, cute::_1,
                                      cute::Int<kQuerySteps>>{}));
  }

  typename Traits::Shared& shared;
};

}  // namespace chipmunk::cuda
