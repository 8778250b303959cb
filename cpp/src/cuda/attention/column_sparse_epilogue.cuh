// What column-sparse attention reads before, and writes after, the sums of a tile.
//
// A rest enters as if its own keys had come last: as one more part of the sums, with its lse for
// the logarithm of its weight. The merge is then the softmax itself, exact, with one rounding. Its
// rows come, and the result's go, through the rings of K and V, as one more tile of each.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
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

// A warp's 16 rows of a tile, in a stage of K or V, as the gather puts rows there.
template <class Traits>
struct StagedRows {
  char* rows;

  __device__ __forceinline__ char* panel(int number) const {
    return rows + number * (Traits::kKeys * 128);
  }
  // What a lane holds of columns 16 * i and on in the layout of a wgmma accumulator: word m is of
  // its row m % 2, in the accumulator's words 8 * i + 2 * m and 8 * i + 2 * m + 1.
  class Reader {
   public:
    __device__ __forceinline__ explicit Reader(const StagedRows& staged) {
      const int lane = opaque_lane();
      mine_ = staged.rows + lane / 4 * (128 + 16) + lane % 4 * 4;
    }
    __device__ __forceinline__ void read(int i, uint32_t (&x)[4]) const {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        x[m] = *reinterpret_cast<const uint32_t*>(chunk(mine_, 2 * i + m / 2) + m % 2 * (8 * 128));
      }
    }

   private:
    const char* mine_;
  };
  class Writer {
   public:
    __device__ __forceinline__ explicit Writer(const StagedRows& staged) {
      const int lane = opaque_lane();  // points at a row of matrix lane / 8
      mine_ = staged.rows + lane % 16 * 128 + ((lane / 16 ^ lane % 8) << 4);
    }
    __device__ __forceinline__ void write(int i, const uint32_t (&x)[4]) const {
      cute::SM90_U32x4_STSM_N::copy(x[0], x[1], x[2], x[3],
                                    *reinterpret_cast<cute::uint128_t*>(chunk(mine_, 2 * i)));
    }

   private:
    char* mine_;
  };

 private:
  // Not a loop invariant to the compiler, which would keep its multiples in registers.
  static __device__ __forceinline__ int opaque_lane() {
    int lane = static_cast<int>(threadIdx.x % 32);
    asm volatile("" : "+r"(lane));
    return lane;
  }
  // From a place in chunk 0 of 16 bytes to the same place in another.
  template <class Char>
  static __device__ __forceinline__ Char* chunk(Char* first, int number) {
    const auto swizzled =
        reinterpret_cast<uintptr_t>(first) ^ static_cast<uintptr_t>(number % 8 << 4);
    return reinterpret_cast<Char*>(swizzled) + number / 8 * (Traits::kKeys * 128);
  }
};

// Adds a warp's rows of a tile's rest.
template <class Traits>
__device__ __forceinline__ void add_rest(const ColumnSparseKernelParams& p, const RowPlace& at,
                                         const StagedRows<Traits>& staged, OnlineSoftmax& softmax,
                                         float (&out)[Traits::kHeadDim / 2]) {
  const float* lses = p.op.rest_lse.data + p.op.rest_lse.offset(at.batch, at.head, at.row);
  float own[2], other[2];
  bool any[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const bool live = at.row + 8 * r < p.op.attention.queries;
    const float lse = live ? lses[8 * r * p.op.rest_lse.row_stride] : -INFINITY;
    softmax.add_part(r, lse * kLog2E, own[r], other[r]);
    any[r] = lse != -INFINITY;  // an empty rest's output does not count
  }
  const typename StagedRows<Traits>::Reader reader(staged);
#pragma unroll
  for (int i = 0; i < Traits::kHeadDim / 16; ++i) {
    uint32_t x[4];
    reader.read(i, x);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float2 pair = unpack_pair<typename Traits::Element>(any[m % 2] ? x[m] : 0u);
      float& low = out[8 * i + 2 * m];
      float& high = out[8 * i + 2 * m + 1];
      low = fmaf(pair.x, other[m % 2], low * own[m % 2]);
      high = fmaf(pair.y, other[m % 2], high * own[m % 2]);
    }
  }
  __syncwarp();  // other lanes write over what this one has read
}

// Writes a warp's rows, by way of `staged`, where they stay until the copy engine has read them.
template <class Traits>
__device__ __forceinline__ void write_rows(const ColumnSparseKernelParams& p, const RowPlace& at,
                                           const StagedRows<Traits>& staged,
                                           const OnlineSoftmax& softmax,
                                           const float (&out)[Traits::kHeadDim / 2]) {
  const AttentionParams& a = p.op.attention;
  float sum[2], scale[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] = quad_sum(softmax.sum[r]);
    // A sum of 0: every score was -inf, and there was no rest.
    scale[r] = sum[r] == 0.0f ? 0.0f : reciprocal_approximate(sum[r]);
  }
  const typename StagedRows<Traits>::Writer writer(staged);
#pragma unroll
  for (int i = 0; i < Traits::kHeadDim / 16; ++i) {
    uint32_t x[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      x[m] = pack_pair<typename Traits::Element>(out[8 * i + 2 * m] * scale[m % 2],
                                                 out[8 * i + 2 * m + 1] * scale[m % 2]);
    }
    writer.write(i, x);
  }
  cute::tma_store_fence();
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int panel = 0; panel < Traits::kPadded / 64; ++panel) {
      cute::SM90_TMA_STORE_4D::copy(&p.out, staged.panel(panel), panel * 64, at.row, at.head,
                                    at.batch);
    }
    cute::tma_store_arrive();
  }
  __syncwarp();
  if (threadIdx.x % 4 == 0) {
    float* lses = a.lse.data + a.lse.offset(at.batch, at.head, at.row);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (at.row + 8 * r >= a.queries) continue;
      lses[8 * r * a.lse.row_stride] =
          sum[r] == 0.0f ? -INFINITY : (softmax.reference[r] + __log2f(sum[r])) * kLn2;
    }
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
  for (int i = static_cast<int>(threadIdx.x % 128); i < at.warpgroups * 64 * kChunks; i += 128) {
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
