// What column-sparse attention reads before, and writes after, the sums of a tile.
//
// A rest enters as if its own keys had come last: as one more part of the sums, with its lse for
// the logarithm of its weight. The merge is then the softmax itself, exact, with one rounding. Its
// rows come, and the result's go, through the rings of K and V, as one more tile of each.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/attention/column_sparse_traits.cuh"
#include "cuda/device/packed.cuh"
#include "cuda/device/softmax.cuh"

namespace chipmunk::cuda {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;

// A thread's two rows of a tile: this one and the eighth after it.
struct RowPlace {
  int32_t batch, head, row;
};

template <class Element>
__device__ __forceinline__ float2 unpack_pair(uint32_t word) {
  Element pair[2];
  memcpy(pair, &word, sizeof(word));
  return {to_float(pair[0]), to_float(pair[1])};
}

// A warp's 16 rows in shared memory, in 128-byte-swizzled panels of 64 columns and kPanelRows rows.
template <int kPanelRows>
class SwizzledRows {
 public:
  __device__ __forceinline__ explicit SwizzledRows(char* rows) : rows_(rows) {
    const uint32_t lane = read_thread() % 32;  // points at a row of matrix lane / 8
    mine_ = static_cast<int>(lane % 16 * 128 + ((lane / 16 ^ lane % 8) << 4));
  }
  __device__ __forceinline__ char* panel(int number) const {
    return rows_ + number * (kPanelRows * 128);
  }
  // Columns 16 * i and on in the layout of a wgmma accumulator: word m is of the lane's row m % 2,
  // in the accumulator's words 8 * i + 2 * m and 8 * i + 2 * m + 1.
  __device__ __forceinline__ void read(int i, uint32_t (&x)[4]) const {
    cute::SM75_U32x4_LDSM_N::copy(*at(i), x[0], x[1], x[2], x[3]);
  }
  __device__ __forceinline__ void write(int i, const uint32_t (&x)[4]) const {
    cute::SM90_U32x4_STSM_N::copy(x[0], x[1], x[2], x[3], *at(i));
  }

 private:
  // By an offset: by way of an integer address the compiler would forget that this is shared
  // memory.
  __device__ __forceinline__ cute::uint128_t* at(int i) const {
    return reinterpret_cast<cute::uint128_t*>(rows_ + (mine_ ^ i % 4 << 5) +
                                              i / 4 * (kPanelRows * 128));
  }

  char* rows_;
  int mine_;
};

// Those of a tile's rest or result, in a stage of K or V, as the gather puts rows there.
template <class Traits>
struct StagedRows : SwizzledRows<Traits::kKeys> {
  using SwizzledRows<Traits::kKeys>::SwizzledRows;
};

// out * own + rest * other, for two columns of a row. An empty rest's output does not count.
template <class Element>
__device__ __forceinline__ float2 merge_pair(float low, float high, uint32_t rest, float own,
                                             float other, bool any_rest) {
  const float2 pair = unpack_pair<Element>(any_rest ? rest : 0u);
  return {fmaf(pair.x, other, low * own), fmaf(pair.y, other, high * own)};
}

// A sum of 0: every score was -inf, and there was no rest.
__device__ __forceinline__ float reciprocal_of_sum(float sum) {
  return sum == 0.0f ? 0.0f : reciprocal_approximate(sum);
}

// Has the copy engine store a warp's rows: panels of 64 columns, from `column` on.
template <int kPanels, class Traits>
__device__ __forceinline__ void store_staged(const ColumnSparseKernelParams& p, const RowPlace& at,
                                             const StagedRows<Traits>& staged, int column) {
  cute::tma_store_fence();
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      cute::SM90_TMA_STORE_4D::copy(&p.out, staged.panel(panel), column + panel * 64, at.row,
                                    at.head, at.batch);
    }
    cute::tma_store_arrive();
  }
  __syncwarp();
}

// Two lanes of a quad write a row each.
__device__ __forceinline__ void write_lse(const AttentionParams& a, const RowPlace& at,
                                          const OnlineSoftmax& softmax) {
  const uint32_t r = read_thread() % 4;
  const float lse_log2 = r == 0 ? softmax.lse_log2(0) : softmax.lse_log2(1);
  const int32_t row = at.row + (r == 0 ? 0 : 8);
  if (r < 2 && row < a.queries) {
    a.lse.data[a.lse.offset(at.batch, at.head, row)] = lse_log2 * kLn2;
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

// The same, merged with the rest's rows, which are found there.
template <class Traits>
__device__ __forceinline__ void merge_rows(const StagedRows<Traits>& staged,
                                           const float (&rest_lse)[2], OnlineSoftmax& softmax,
                                           const float (&out)[Traits::kHeadDim / 2]) {
  using Element = typename Traits::Element;
  constexpr int kParts = Traits::kHeadDim / 16;
  float own[2], other[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    softmax.add_part(r, rest_lse[r] * kLog2E, own[r], other[r]);
    const float reciprocal = reciprocal_of_sum(softmax.sum[r]);
    own[r] *= reciprocal, other[r] *= reciprocal;
  }
  uint32_t rest[2][4];
  staged.read(0, rest[0]);
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    if (i + 1 < kParts) staged.read(i + 1, rest[(i + 1) % 2]);
    uint32_t words[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float2 pair =
          merge_pair<Element>(out[8 * i + 2 * m], out[8 * i + 2 * m + 1], rest[i % 2][m],
                              own[m % 2], other[m % 2], rest_lse[m % 2] != -INFINITY);
      words[m] = pack_pair<Element>(pair.x, pair.y);
    }
    __syncwarp();  // all lanes have read what is written over
    staged.write(i, words);
  }
}

// A list without columns: the rest as it is, or nothing. By 128 threads. Where the rest is the
// result, every word is written as it was read.
template <class Traits>
__device__ __forceinline__ void write_empty_tile(const ColumnSparseKernelParams& p,
                                                 const Work& at) {
  using Element = typename Traits::Element;
  constexpr int kChunks = Traits::kHeadDim / 8;  // of 16 bytes, in a row
  const ColumnSparseAttentionParams& op = p.op;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x % 128); i < at.row_blocks() * 64 * kChunks; i += 128) {
    const int32_t row = at.first_row + i / kChunks;
    const int chunk = i % kChunks;
    const bool live = row < op.attention.queries;
    float lse = -INFINITY;
    if (p.has_rest && live) lse = op.rest_lse.data[op.rest_lse.offset(at.batch, at.head, row)];
    if (!live) continue;
    uint4 words = make_uint4(0, 0, 0, 0);
    if (p.has_rest && lse != -INFINITY) {
      words =
          *reinterpret_cast<const uint4*>(static_cast<const Element*>(op.rest_out.data) +
                                          op.rest_out.offset(at.batch, at.head, row) + 8 * chunk);
    }
    const AttentionParams& a = op.attention;
    *reinterpret_cast<uint4*>(static_cast<Element*>(a.out.data) +
                              a.out.offset(at.batch, at.head, row) + 8 * chunk) = words;
    if (chunk == 0) a.lse.data[a.lse.offset(at.batch, at.head, row)] = lse;
  }
}

}  // namespace chipmunk::cuda
