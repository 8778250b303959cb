// What an attention kernel reads before, and writes after, the sums of a tile.
//
// A rest enters as if its own keys had come last: as one more part of the sums, with its lse for
// the logarithm of its weight. The merge is then the softmax itself, exact, with one rounding. Its
// rows come, and the result's go, through the rings of K and V, as one more tile of each.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/attention/traits.cuh"
#include "cuda/device/accumulator.cuh"
#include "cuda/device/softmax.cuh"

namespace chipmunk::cuda {

// A warp's rows of a tile's rest or result, in a stage of K or V, as the gather puts rows there.
template <class Traits>
using StagedRows = SwizzledRows<Traits::kKeys>;

// Two lanes of a quad write a row each.
__device__ __forceinline__ void write_lse(const AttentionParams& a, const RowPlace& at,
                                          const OnlineSoftmax& softmax, float unit) {
  const uint32_t r = read_thread() % 4;
  const float lse = OnlineSoftmax::lse(r == 0 ? softmax.reference[0] : softmax.reference[1],
                                       r == 0 ? softmax.sum[0] : softmax.sum[1], unit);
  const int32_t position = at.row + (r == 0 ? 0 : 8);
  if (r < 2 && position < a.queries) {
    a.lse.data[a.lse.offset(at.batch, at.head, row_of(a, position))] = lse;
  }
}

// Puts a warp's rows in their stage, once `wait` has been for it.
template <class Traits, class Wait>
__device__ __forceinline__ void stage_rows(const StagedRows<Traits>& staged,
                                           const OnlineSoftmax& softmax,
                                           const float (&out)[Traits::kHeadDim / 2],
                                           const Wait& wait) {
  using Element = typename Traits::Element;
  constexpr int kParts = Traits::kHeadDim / 16;
  const float own[2] = {reciprocal_of_sum(softmax.sum[0]), reciprocal_of_sum(softmax.sum[1])};
  // All words before `wait`, so that each has a register of its own: else the compiler takes the
  // same four for every store, which then waits until the one before has read them.
  uint32_t words[kParts][4];
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      words[i][m] =
          pack_pair<Element>(out[8 * i + 2 * m] * own[m % 2], out[8 * i + 2 * m + 1] * own[m % 2]);
      asm volatile("" : "+r"(words[i][m]));
    }
  }
  wait();
#pragma unroll
  for (int i = 0; i < kParts; ++i) staged.write(i, words[i]);
}

// The same, merged with the rest's rows, which are found there. An empty rest's output does not
// count.
template <class Traits>
__device__ __forceinline__ void merge_rows(const StagedRows<Traits>& staged,
                                           const float (&rest_lse)[2], OnlineSoftmax& softmax,
                                           float softmax_scale,
                                           const float (&out)[Traits::kHeadDim / 2]) {
  using Element = typename Traits::Element;
  constexpr int kParts = Traits::kHeadDim / 16;
  float own[2], other[2];
  softmax.merge(0, rest_lse[0], softmax_scale, own[0], other[0]);
  softmax.merge(1, rest_lse[1], softmax_scale, own[1], other[1]);
  uint32_t rest[2][4];
  staged.read(0, rest[0]);
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    if (i + 1 < kParts) staged.read(i + 1, rest[(i + 1) % 2]);
    uint32_t words[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int r = m % 2;
      const float2 pair = unpack_pair<Element>(rest_lse[r] != -INFINITY ? rest[i % 2][m] : 0u);
      words[m] = pack_pair<Element>(fmaf(pair.x, other[r], out[8 * i + 2 * m] * own[r]),
                                    fmaf(pair.y, other[r], out[8 * i + 2 * m + 1] * own[r]));
    }
    __syncwarp();  // all lanes have read what is written over
    staged.write(i, words);
  }
}

// A warp's staged rows to the rows of the result that query_rows names: what the copy engine does
// where rows lie one after another. Lane i knows `row`, of the warp's row i % 16. Behind a
// __syncwarp.
template <class Traits>
__device__ __forceinline__ void scatter_rows(const StagedRows<Traits>& staged,
                                             const AttentionParams& a, const RowPlace& first,
                                             int32_t row) {
  using Element = typename Traits::Element;
  constexpr int kChunks = Traits::kHeadDim / 8;  // of 16 bytes, in a row
  const int lane = static_cast<int>(read_thread() % 32);
  Element* const out = static_cast<Element*>(a.out.data) + a.out.offset(first.batch, first.head);
#pragma unroll 2
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int in_warp = i / kChunks, chunk = i % kChunks;
    const int32_t to = __shfl_sync(0xffffffffu, row, in_warp);
    const uint4 words =
        *reinterpret_cast<const uint4*>(staged.data() + chunk / 8 * staged.kPanelBytes +
                                        in_warp * 128 + (chunk % 8 ^ in_warp % 8) * 16);
    if (first.row + in_warp < a.queries) {
      *reinterpret_cast<uint4*>(out + to * a.out.strides[2] + 8 * chunk) = words;
    }
  }
}

// A list without columns: the rest as it is, or nothing. By 128 threads. Where the rest is the
// result, every word is written as it was read.
template <class Traits>
__device__ __forceinline__ void write_empty_tile(const AttentionKernelParams& p, const Work& at) {
  using Element = typename Traits::Element;
  constexpr int kChunks = Traits::kHeadDim / 8;  // of 16 bytes, in a row
  const AttentionParams& a = p.attention;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x % 128); i < at.warpgroups * 64 * kChunks; i += 128) {
    const int32_t position = at.first_row + i / kChunks;
    const int chunk = i % kChunks;
    if (position >= a.queries) continue;
    const int32_t row = row_of(a, position);
    float lse = -INFINITY;
    if (p.rest_out.data != nullptr) {
      lse = p.rest_lse.data[p.rest_lse.offset(at.batch, at.head, row)];
    }
    uint4 words = make_uint4(0, 0, 0, 0);
    if (lse != -INFINITY) {
      words =
          *reinterpret_cast<const uint4*>(static_cast<const Element*>(p.rest_out.data) +
                                          p.rest_out.offset(at.batch, at.head, row) + 8 * chunk);
    }
    *reinterpret_cast<uint4*>(static_cast<Element*>(a.out.data) +
                              a.out.offset(at.batch, at.head, row) + 8 * chunk) = words;
    if (chunk == 0) a.lse.data[a.lse.offset(at.batch, at.head, row)] = lse;
  }
}

}  // namespace chipmunk::cuda
