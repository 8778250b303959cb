// Scores computed again, by a warp alone, where they have been weighed by too low a reference.
#pragma once

#include <cute/arch/copy_sm75.hpp>

#include "cuda/attention/traits.cuh"
#include "cuda/device/accumulator.cuh"

namespace chipmunk::cuda {

// A warp's rows of Q K^T, from the stage of K at `keys`. The queries come from global memory: those
// in shared memory may be the next tile's.
template <class Traits>
__device__ __forceinline__ void multiply_qk_again(const AttentionParams& a, const RowPlace& at,
                                                  const char* keys,
                                                  float (&scores)[Traits::kKeys / 2]) {
  using Mma = typename Traits::WarpMma;
  constexpr int kKeys = Traits::kKeys;
  const int lane = static_cast<int>(read_thread() % 32);
  // What this lane points at: 8 rows of 16 bytes make a matrix, four matrices an operand.
  const int k_row = lane / 16 * 8 + lane % 8;
  const char* k = keys + k_row * 128;
  const uint32_t* q[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int32_t row = row_of(a, min(at.row + 8 * r, static_cast<int32_t>(a.queries) - 1));
    q[r] = reinterpret_cast<const uint32_t*>(
               static_cast<const typename Traits::MmaElement*>(a.q.data) +
               a.q.offset(at.batch, at.head, row)) +
           lane % 4;
  }
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) scores[i] = 0.0f;
#pragma unroll 1
  for (int step = 0; step < Traits::kHeadDim / 16; ++step) {
    const int panel = step / 4, chunk = step % 4 * 2;
    const uint32_t words[4] = {__ldg(q[0] + step * 8), __ldg(q[1] + step * 8),
                               __ldg(q[0] + step * 8 + 4), __ldg(q[1] + step * 8 + 4)};
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      uint32_t b[4];
      cute::SM75_U32x4_LDSM_N::copy(
          *reinterpret_cast<const cute::uint128_t*>(k + panel * (kKeys * 128) + i * 2048 +
                                                    ((chunk + lane / 8 % 2) ^ (k_row & 7)) * 16),
          b[0], b[1], b[2], b[3]);
      float* s = &scores[8 * i];
      Mma::fma(s[0], s[1], s[2], s[3], words[0], words[1], words[2], words[3], b[0], b[1], s[0],
               s[1], s[2], s[3]);
      Mma::fma(s[4], s[5], s[6], s[7], words[0], words[1], words[2], words[3], b[2], b[3], s[4],
               s[5], s[6], s[7]);
    }
  }
  __syncwarp();  // one lane will tell that the keys have been read
}

}  // namespace chipmunk::cuda
