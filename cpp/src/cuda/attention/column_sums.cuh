// Column sums: what a warp adds up of its rows of weights, and where the warps' parts meet.
//
// column_sums[j] = sum over a group's rows i of exp(score_ij - reference_lse_i). The weights are
// exp2(scaled score - reference_i) already, so a factor for each row makes them summands. There is
// no second softmax and no guard: a row's factor follows its reference.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "cuda/attention/traits.cuh"
#include "cuda/device/accumulator.cuh"
#include "cuda/device/softmax.cuh"

namespace chipmunk::cuda {

// A position in the ring of kStages tiles of column sums, in one register.
template <int kStages>
struct SumPosition {
  uint32_t count = 0;
  static_assert(kStages == 1 || kStages == 2);

  __device__ int stage() const { return static_cast<int>(count % kStages); }
  // The writer finds the consumers' parity; their own first pass waits for nothing.
  __device__ RingPosition<kStages> of_writer() const { return {stage(), count / kStages % 2}; }
  __device__ RingPosition<kStages> of_consumer() const {
    return {stage(), count / kStages % 2 ^ 1};
  }
};

// The warps' parts of the sums of a tile of keys.
//
// | barrier | arrive                       | wait                 |
// |---------|------------------------------|----------------------|
// | full    | a lane of each consumer warp | the adding warp      |
// | empty   | a lane of the adding warp    | each consumer warp   |
template <int kStages, int kWarps, int kKeys>
struct ColumnSumParts {
  float2 pairs[kStages][kWarps][kKeys / 2];
  Ring<kStages> ring;

  __device__ void init() { ring.init(kWarps, 1); }
};

// What the sums of a row refer to: exp2(reference + log2_sum) where weights are not exact
// (OnlineSoftmax), exp2(scale_log2 * reference + log2_sum) where they are.
struct alignas(16) RowReference {
  float reference, log2_sum, exact;

  static __device__ RowReference of_lse(float lse) { return {lse * kLog2E, 0.0f, 0.0f}; }
  // Of a finished softmax.
  static __device__ RowReference of_row(float reference, float sum, bool exact) {
    return {reference, log2_approximate(sum), exact ? 1.0f : 0.0f};
  }
};

// Where a first pass over QK^T keeps it: in the row of the output, which the second pass writes.
__device__ __forceinline__ RowReference* row_reference(const AttentionParams& a, int32_t batch,
                                                       int32_t head, int32_t row) {
  return reinterpret_cast<RowReference*>(static_cast<char*>(a.out.data) +
                                         2 * a.out.offset(batch, head, row));
}

// What makes a weight of a row a summand: 0 for an infinite reference. A row whose scores have left
// the reference far behind gives the greatest number, not infinity, which would make NaN of a
// weight of 0.
__device__ __forceinline__ float summand_factor(const OnlineSoftmax& softmax, int row,
                                                const RowReference& to) {
  const float scale = softmax.scale_log2, mine = softmax.reference[row];
  float octaves;
  if (softmax.exact) {
    octaves = to.exact != 0.0f ? (mine - to.reference) * scale : fmaf(mine, scale, -to.reference);
  } else {
    octaves = to.exact != 0.0f ? fmaf(-to.reference, scale, mine) : mine - to.reference;
  }
  const float factor = exp2_approximate(octaves - to.log2_sum);
  if (isinf(to.reference + to.log2_sum)) return 0.0f;
  return factor > FLT_MAX ? FLT_MAX : factor;
}

// What the sums of a thread's two rows refer to, where the caller gives it; `at` is the first row.
// Rows behind the last one count for nothing.
template <class Params>
__device__ __forceinline__ void load_reference_lse(const Params& p, const RowPlace& at,
                                                   float (&lse)[2]) {
  const AttentionParams& a = p.attention;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int32_t position = at.row + 8 * r;
    lse[r] = INFINITY;
    if (position < a.queries && p.reference_lse.data != nullptr) {
      lse[r] = __ldg(p.reference_lse.data +
                     p.reference_lse.offset(at.batch, at.head, row_of(a, position)));
    }
  }
}
// The factors of these rows, by `lse` or by what a first pass has kept.
template <class Params>
__device__ __forceinline__ float2 summand_factors(const Params& p, const RowPlace& at,
                                                  const OnlineSoftmax& softmax,
                                                  const float (&lse)[2]) {
  const AttentionParams& a = p.attention;
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int32_t position = at.row + 8 * r;
    RowReference to = RowReference::of_lse(lse[r]);
    if (p.reference_lse.data == nullptr && position < a.queries) {
      to = *row_reference(a, at.batch, at.head, row_of(a, position));
    }
    factor[r] = summand_factor(softmax, r, to);
  }
  return {factor[0], factor[1]};
}

// The first pass's: two lanes of a quad keep a row each.
__device__ __forceinline__ void keep_reference(const AttentionParams& a, const RowPlace& at,
                                               const OnlineSoftmax& softmax) {
  const uint32_t r = read_thread() % 4;
  const int32_t position = at.row + (r == 0 ? 0 : 8);
  if (r < 2 && position < a.queries) {
    *row_reference(a, at.batch, at.head, row_of(a, position)) =
        RowReference::of_row(r == 0 ? softmax.reference[0] : softmax.reference[1],
                             r == 0 ? softmax.sum[0] : softmax.sum[1], softmax.exact);
  }
}

// Adds up kCount values of each lane over lanes that differ in bit kMask. A lane keeps half of the
// values: of its pairs of columns those from `first` on, `count` of them.
template <int kMask, int kCount, int kPairs>
__device__ __forceinline__ void add_halves(float2 (&sums)[kPairs], uint32_t lane, int& first,
                                           int& count) {
  constexpr int kHalf = (kCount + 1) / 2;
  const bool upper = (lane & kMask) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float2 low = sums[i];
    const float2 high = kHalf + i < kCount ? sums[kHalf + i] : make_float2(0.0f, 0.0f);
    const float2 give = upper ? low : high, keep = upper ? high : low;
    sums[i].x = keep.x + __shfl_xor_sync(0xffffffffu, give.x, kMask);
    sums[i].y = keep.y + __shfl_xor_sync(0xffffffffu, give.y, kMask);
  }
  first += upper ? kHalf : 0;
  count = upper ? count - kHalf : min(count, kHalf);
}

// Adds up what the lanes of a warp have of kKeys columns, in pairs of neighbours.
template <int kKeys>
__device__ __forceinline__ void add_lanes(float2 (&sums)[kKeys / 8], float2* pairs) {
  constexpr int kPairs = kKeys / 8, kHalf = (kPairs + 1) / 2, kQuarter = (kHalf + 1) / 2;
  const uint32_t lane = read_thread() % 32;
  int first = 0, count = kPairs;
  add_halves<16, kPairs>(sums, lane, first, count);
  add_halves<8, kHalf>(sums, lane, first, count);
  add_halves<4, kQuarter>(sums, lane, first, count);
#pragma unroll
  for (int i = 0; i < (kQuarter + 1) / 2; ++i) {
    if (i < count) pairs[4 * (first + i) + lane % 4] = sums[i];
  }
}

}  // namespace chipmunk::cuda
