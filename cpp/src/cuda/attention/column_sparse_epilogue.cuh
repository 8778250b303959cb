// What column-sparse attention reads before, and writes after, the sums of a tile.
//
// A rest enters as the state that its own keys would have left: reference and sum from its lse, its
// output as the weighted values so far. The merge is then the softmax itself, exact, with one
// rounding.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

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

// Lane c of a quad holds word c of each of four blocks of 8 elements; afterwards all four words,
// 16 contiguous bytes, of block c. Its own inverse.
__device__ __forceinline__ void transpose_in_quad(uint32_t (&x)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? x[i] : x[i + 1], 1);
    x[i] = odd ? got : x[i];
    x[i + 1] = odd ? x[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? x[i] : x[i + 2], 2);
    x[i] = high ? got : x[i];
    x[i + 2] = high ? x[i + 2] : got;
  }
}

template <class Element>
__device__ __forceinline__ float2 unpack_pair(uint32_t word) {
  Element pair[2];
  memcpy(pair, &word, sizeof(word));
  return {to_float(pair[0]), to_float(pair[1])};
}

// Brings a tile's rest into L2, some time before the consumers want it. By 128 threads.
template <class Traits>
__device__ __forceinline__ void prefetch_rest(const ColumnSparseKernelParams& p, const Work& at) {
  constexpr int kLines = Traits::kPadded / 64;  // of 128 bytes, in a row
  const ColumnSparseAttentionParams& op = p.op;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x % 128); i < Traits::kQueries * kLines; i += 128) {
    const int32_t row = at.first_row + i / kLines;
    if (row >= op.attention.queries) break;
    const char* out = static_cast<const char*>(op.rest_out.data) +
                      2 * op.rest_out.offset(at.batch, at.head, row) + i % kLines * 128;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(out));
    if (i % kLines != 0) continue;
    const float* lse = op.rest_lse.data + op.rest_lse.offset(at.batch, at.head, row);
    asm volatile("prefetch.global.L2 [%0];" ::"l"(lse));
  }
}

template <class Traits>
__device__ __forceinline__ void start_from_rest(const ColumnSparseKernelParams& p,
                                                const RowPlace& at, OnlineSoftmax& softmax,
                                                float (&out)[Traits::kPadded / 2]) {
  using Element = typename Traits::Element;
  const ColumnSparseAttentionParams& op = p.op;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int32_t row = at.row + 8 * r;
    const bool live = row < op.attention.queries;
    const float lse =
        live ? op.rest_lse.data[op.rest_lse.offset(at.batch, at.head, row)] : -INFINITY;
    const bool any = lse != -INFINITY;  // an empty rest's output does not count
    softmax.reference[r] = lse < -0.5f * FLT_MAX ? -FLT_MAX : lse * kLog2E;
    softmax.sum[r] = any && threadIdx.x % 4 == 0 ? 1.0f : 0.0f;
    const Element* from = static_cast<const Element*>(op.rest_out.data) +
                          op.rest_out.offset(at.batch, at.head, row) + threadIdx.x % 4 * 8;
#pragma unroll
    for (int block = 0; block < Traits::kHeadDim / 32; ++block) {
      uint4 words = make_uint4(0, 0, 0, 0);
      if (live) words = *reinterpret_cast<const uint4*>(from + 32 * block);  // beside the lse
      uint32_t x[4] = {words.x, words.y, words.z, words.w};
      transpose_in_quad(x);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack_pair<Element>(any ? x[i] : 0u);
        out[16 * block + 4 * i + 2 * r] = pair.x;
        out[16 * block + 4 * i + 2 * r + 1] = pair.y;
      }
    }
  }
}

template <class Traits>
__device__ __forceinline__ void write_tile(const ColumnSparseKernelParams& p, const RowPlace& at,
                                           const OnlineSoftmax& softmax,
                                           const float (&out)[Traits::kPadded / 2]) {
  using Element = typename Traits::Element;
  const AttentionParams& a = p.op.attention;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int32_t row = at.row + 8 * r;
    const bool live = row < a.queries;
    const float sum = quad_sum(softmax.sum[r]);
    // A sum of 0: every score was -inf, and there was no rest.
    const float scale = sum == 0.0f ? 0.0f : __frcp_rn(sum);
    if (live && threadIdx.x % 4 == 0) {
      a.lse.data[a.lse.offset(at.batch, at.head, row)] =
          sum == 0.0f ? -INFINITY : (softmax.reference[r] + __log2f(sum)) * kLn2;
    }
    Element* to = static_cast<Element*>(a.out.data) + a.out.offset(at.batch, at.head, row) +
                  threadIdx.x % 4 * 8;
#pragma unroll
    for (int block = 0; block < Traits::kHeadDim / 32; ++block) {
      uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = pack_pair<Element>(out[16 * block + 4 * i + 2 * r] * scale,
                                  out[16 * block + 4 * i + 2 * r + 1] * scale);
      }
      transpose_in_quad(x);
      if (live) *reinterpret_cast<uint4*>(to + 32 * block) = make_uint4(x[0], x[1], x[2], x[3]);
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
  for (int i = static_cast<int>(threadIdx.x % 128); i < Traits::kQueries * kChunks; i += 128) {
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
