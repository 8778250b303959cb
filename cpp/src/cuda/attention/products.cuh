// The two products of attention, and the registers that they fill: 64 rows of a warpgroup.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device/accumulator.cuh"
#include "cuda/device/wgmma.cuh"

namespace chipmunk::cuda {

// Scores and weights for one tile of keys, and sums of output. `Shared` holds q, k and v in the
// layouts of Traits.
template <class Traits>
class Products {
 public:
  __device__ __forceinline__ explicit Products(typename Traits::Shared& storage)
      : shared(storage) {}

  // S = Q K^T, by warpgroup w.
  __device__ __forceinline__ void start_qk(int w, int stage) {
    using cute::_;
    const auto k = typename Traits::MmaQK{}.get_slice(0).partition_fragment_B(cute::make_tensor(
        cute::make_smem_ptr(shared.k), typename Traits::LayoutK{}))(_, _, _, stage);
    fence_registers(scores);
    if constexpr (Traits::kHoldsQueries) {
      start_product<kSteps, Start::kZero>(
          typename Traits::MmaOfHeldQueries{},
          operand_tensor<MmaElement, Traits::kHeadDim>(&held_queries_[0][0]), k,
          accumulator_tensor<kKeys>(scores));
    } else {
      // Not a loop invariant to the compiler, which would keep all its descriptors in registers.
      asm volatile("" : "+r"(w));
      const auto q = typename Traits::MmaQK{}.get_slice(0).partition_fragment_A(
          cute::make_tensor(cute::make_smem_ptr(shared.q[w]), typename Traits::LayoutQ{}));
      start_product<kSteps, Start::kZero>(typename Traits::MmaQK{}, q, k,
                                          accumulator_tensor<kKeys>(scores));
    }
  }
  // Takes a warp's queries into registers, where they are held there. No product may be reading the
  // old ones.
  __device__ __forceinline__ void hold_queries(int w) {
    if constexpr (Traits::kHoldsQueries) {
      const SwizzledRows<64> rows(reinterpret_cast<char*>(shared.q[w]) +
                                  read_thread() / 32 % 4 * (16 * 128));
#pragma unroll
      for (int k = 0; k < kSteps; ++k) rows.read(k, held_queries_[k]);
    }
  }
  // Until at most kUnderWay products are; then the scores are there.
  template <int kUnderWay = 0>
  __device__ __forceinline__ void finish_qk() {
    wait_for_products<kUnderWay>();
    fence_registers(scores);
  }

  // O += P V.
  __device__ __forceinline__ void start_pv(int stage) {
    using cute::_;
    // A product of head dim 96 looks at 96 of 128 columns.
    const auto v =
        typename Traits::PaddedMmaPV{}.get_slice(0).partition_fragment_B(cute::make_tensor(
            cute::make_smem_ptr(shared.v), typename Traits::LayoutV{}))(_, _, _, stage);
    fence_registers(out);
    fence_registers(weights_);
    start_product<kKeys / 16, Start::kAccumulate>(typename Traits::MmaPV{},
                                                  operand_tensor<MmaElement, kKeys>(weights_), v,
                                                  accumulator_tensor<Traits::kHeadDim>(out));
  }
  __device__ __forceinline__ void finish_pv() {
    wait_for_products<0>();
    fence_registers(out);
    fence_registers(weights_);
  }

  // Scores of keys from `first` on count for nothing.
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
      weights_[i] = pack_pair<typename Traits::Element>(scores[2 * i], scores[2 * i + 1]);
    }
  }
  // The same, and the weights of each column's two rows, times the rows' factors, in pairs of
  // neighbours.
  __device__ __forceinline__ void pack_and_add_rows(const float2& factor,
                                                    float2 (&sums)[Traits::kKeys / 8]) {
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) {
      const float* w = &scores[4 * i];
      weights_[2 * i] = pack_pair<typename Traits::Element>(w[0], w[1]);
      weights_[2 * i + 1] = pack_pair<typename Traits::Element>(w[2], w[3]);
      sums[i].x = fmaf(w[2], factor.y, w[0] * factor.x);
      sums[i].y = fmaf(w[3], factor.y, w[1] * factor.x);
    }
  }
  // Before a tile's first PV. Not by a run-time flag of that product: the compiler would take it
  // for one that reads `out`, and could not use these registers otherwise across a tile's end.
  __device__ __forceinline__ void clear_out() {
#pragma unroll
    for (int i = 0; i < Traits::kHeadDim / 2; ++i) out[i] = 0.0f;
  }
  __device__ __forceinline__ void scale_out(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < Traits::kHeadDim / 2; ++i) out[i] *= factor[i >> 1 & 1];
  }

  float scores[Traits::kKeys / 2];
  float out[Traits::kHeadDim / 2];

 private:
  using MmaElement = typename Traits::MmaElement;
  static constexpr int kKeys = Traits::kKeys;
  static constexpr int kSteps = Traits::kHeadDim / 16;

  typename Traits::Shared& shared;
  uint32_t weights_[kKeys / 4];
  uint32_t held_queries_[Traits::kHoldsQueries ? kSteps : 1][4];
};

}  // namespace chipmunk::cuda
