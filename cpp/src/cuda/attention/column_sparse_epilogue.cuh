// What column-sparse attention reads before, and writes after, the sums of a tile.
//
// A rest enters as if its own keys had come last: as one more part of the sums, with its lse for
// the logarithm of its weight. The merge is then the softmax itself, exact, with one rounding. Its
// rows come through the rings of K and V, as one more tile of each.
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

// Adds this thread's two rows of a tile's rest, which lie as RowGather has put them: the first
// kKeys rows in the stage's tile of K, the others in that of V.
template <class Traits>
__device__ __forceinline__ void add_rest(const ColumnSparseKernelParams& p, const RowPlace& at,
                                         int stage, const typename Traits::Shared& shared,
                                         OnlineSoftmax& softmax,
                                         float (&out)[Traits::kPadded / 2]) {
  constexpr int kTile = Traits::kKeys * Traits::kPadded;  // elements
  // Not a loop invariant to the compiler, which would keep all the addresses in registers.
  int thread = static_cast<int>(threadIdx.x);
  asm volatile("" : "+r"(thread));
  const int first = thread / 32 * 16 + thread % 32 / 4 - 64;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int32_t row = at.row + 8 * r;
    const bool live = row < p.op.attention.queries;
    const float lse =
        live ? p.op.rest_lse.data[p.op.rest_lse.offset(at.batch, at.head, row)] : -INFINITY;
    float own, other;
    softmax.add_part(r, lse * kLog2E, own, other);
    const bool any = lse != -INFINITY;  // an empty rest's output does not count
    const int in_tile = first + 8 * r;
    const bool in_v = in_tile >= Traits::kKeys;
    const int tile_row = in_v ? in_tile - Traits::kKeys : in_tile;
    const auto* from = reinterpret_cast<const char*>((in_v ? shared.v : shared.k) + stage * kTile) +
                       tile_row * 128 + thread % 4 * 4;
#pragma unroll
    for (int i = 0; i < Traits::kHeadDim / 8; ++i) {
      const auto word = *reinterpret_cast<const uint32_t*>(from + i / 8 * (Traits::kKeys * 128) +
                                                           ((i % 8 ^ (tile_row & 7)) << 4));
      const float2 pair = unpack_pair<typename Traits::Element>(any ? word : 0u);
      float& low = out[4 * i + 2 * r];
      float& high = out[4 * i + 2 * r + 1];
      low = fmaf(pair.x, other, low * own);
      high = fmaf(pair.y, other, high * own);
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
    const bool odd = threadIdx.x & 1;
    Element* to = static_cast<Element*>(a.out.data) + a.out.offset(at.batch, at.head, row) +
                  (odd ? 8 : 0) + (threadIdx.x & 2) * 2;
#pragma unroll
    for (int pair = 0; pair < Traits::kHeadDim / 16; ++pair) {
      uint32_t x[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x[i] = pack_pair<Element>(out[8 * pair + 4 * i + 2 * r] * scale,
                                  out[8 * pair + 4 * i + 2 * r + 1] * scale);
      }
      const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? x[0] : x[1], 1);
      const uint2 words = odd ? make_uint2(got, x[1]) : make_uint2(x[0], got);
      if (live) *reinterpret_cast<uint2*>(to + 16 * pair) = words;
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
