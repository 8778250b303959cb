// The end of a tile whose rows two warpgroups share.
#pragma once

#include <cmath>

#include "cuda/attention/column_sparse_epilogue.cuh"
#include "cuda/device/barriers.cuh"

namespace chipmunk::cuda {

// What a warp of one warpgroup leaves for the same warp of the other, in a stage of K or V: sums of
// half the columns, and its rows' references and sums of weights. Panels of 64 rows of 128 bytes:
// the first kPanels of them are where the reader's result goes.
template <class Traits>
class WarpPart {
 public:
  static constexpr int kVectors = Traits::kHeadDim / 16;  // of a lane

  // The warp's rows of the result are `offset` bytes on.
  __device__ __forceinline__ WarpPart(char* stage, int offset)
      : stage_(stage), mine_(stage + offset + read_thread() % 32 * 16) {}

  __device__ __forceinline__ float4& vector(int i) const {
    const int panel = i / kInPanel;
    return *reinterpret_cast<float4*>(
        mine_ + i % kInPanel * kVectorBytes +
        (panel < kPanels ? panel * kPanelBytes : kResultBytes + (panel - kPanels) * kRowsBytes));
  }
  __device__ __forceinline__ float4& scale() const {
    return *reinterpret_cast<float4*>(stage_ + kResultBytes + kPanels * kRowsBytes +
                                      read_thread() % 128 * 16);
  }

 private:
  static constexpr int kPanels = Traits::kHeadDim / 128;  // of half the columns
  static constexpr int kRowsBytes = 64 * 128, kPanelBytes = Traits::kKeys * 128;
  static constexpr int kResultBytes = kPanels * kPanelBytes;
  static constexpr int kVectorBytes = 32 * 16, kInPanel = 16 * 128 / kVectorBytes;
  static_assert(kVectors == 2 * kPanels * kInPanel);
  static_assert(kResultBytes + kPanels * kRowsBytes + 128 * 16 <= Traits::RowGather::kTileBytes);

  char *stage_, *mine_;
};

// The lse of a thread's rows of the rest; -inf for none.
__device__ __forceinline__ void load_rest_lse(const ColumnSparseKernelParams& p, const RowPlace& at,
                                              float (&lse)[2]) {
  lse[0] = lse[1] = -INFINITY;
  if (!p.has_rest) return;
  const float* lses = p.op.rest_lse.data + p.op.rest_lse.offset(at.batch, at.head, at.row);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (at.row + 8 * r < p.op.attention.queries) lse[r] = lses[8 * r * p.op.rest_lse.strides[2]];
  }
}

// A thread's words of the rest from a column on, in the order of StagedRows; to be read only where
// its lse is not -inf.
template <class Traits>
class RestWords {
 public:
  __device__ __forceinline__ RestWords(const ColumnSparseKernelParams& p, const RowPlace& at,
                                       int column)
      : words_(reinterpret_cast<const uint32_t*>(
            static_cast<const typename Traits::Element*>(p.op.rest_out.data) +
            p.op.rest_out.offset(at.batch, at.head, at.row) + column + read_thread() % 4 * 2)),
        next_row_(4 * p.op.rest_out.strides[2]) {}
  __device__ __forceinline__ uint32_t read(int i, int m) const {
    return words_[i * 8 + m / 2 * 4 + (m % 2 == 0 ? 0 : next_row_)];
  }

 private:
  const uint32_t* words_;
  int64_t next_row_;  // the eighth after this one, in words
};

// Both warpgroups have sums of all columns, each over its own keys. Each hands over those of half
// the columns, and merges and writes the other half, `kHalf`. The parts go through stages of K and
// V, `to` and `from`; the warp's rows of the result are in `from`, `offset` bytes on. A rest comes
// from global memory.
template <class Traits, int kHalf>
__device__ __forceinline__ void write_half(const ColumnSparseKernelParams& p, const RowPlace& at,
                                           char* to, char* from, int offset, OnlineSoftmax& softmax,
                                           const float (&out)[Traits::kHeadDim / 2]) {
  using Element = typename Traits::Element;
  using Part = WarpPart<Traits>;
  constexpr int kWords = Traits::kHeadDim / 4;  // of the accumulator, in half the columns
  constexpr int kMine = kHalf * kWords, kOther = kWords - kMine;
  {
    const Part part(to, offset);
#pragma unroll
    for (int i = 0; i < Part::kVectors; ++i) {
      const float* x = &out[kOther + 4 * i];
      part.vector(i) = make_float4(x[0], x[1], x[2], x[3]);
    }
    part.scale() =
        make_float4(softmax.reference[0], softmax.reference[1], softmax.sum[0], softmax.sum[1]);
  }
  float rest_lse[2];  // before the other warpgroup may write over it
  load_rest_lse(p, at, rest_lse);
  named_arrive(kPart + (1 - kHalf), 256);
  named_sync(kPart + kHalf, 256);
  const Part part(from, offset);
  const float4 scale = part.scale();
  const float reference[2] = {scale.x, scale.y}, others[2] = {scale.z, scale.w};
  float own[2], other[2], of_rest[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float both = 1.0f;
    of_rest[r] = 0.0f;
    softmax.add_sum(r, reference[r], others[r], own[r], other[r]);
    if (p.has_rest) softmax.add_part(r, rest_lse[r] * kLog2E, both, of_rest[r]);
    const float reciprocal = reciprocal_of_sum(softmax.sum[r]);
    both *= reciprocal;
    own[r] *= both;
    other[r] *= both;
    of_rest[r] *= reciprocal;
  }
  const RestWords<Traits> rest(p, at, kHalf * (Traits::kHeadDim / 2));
  uint32_t merged[Part::kVectors / 2][4];
#pragma unroll
  for (int i = 0; i < Part::kVectors / 2; ++i) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int r = m % 2;
      const float4 y = part.vector(2 * i + m / 2);
      const float* x = &out[kMine + 8 * i + 2 * m];
      const float low = fmaf(r == 0 ? y.x : y.z, other[r], x[0] * own[r]);
      const float high = fmaf(r == 0 ? y.y : y.w, other[r], x[1] * own[r]);
      const float2 z = unpack_pair<Element>(rest_lse[r] != -INFINITY ? rest.read(i, m) : 0u);
      merged[i][m] = pack_pair<Element>(fmaf(z.x, of_rest[r], low), fmaf(z.y, of_rest[r], high));
    }
    __syncwarp();  // keeps the compiler from loading everything first; at the end, all have read
  }
  const StagedRows<Traits> staged(from + offset);
#pragma unroll
  for (int i = 0; i < Part::kVectors / 2; ++i) staged.write(i, merged[i]);
  store_staged<Traits::kHeadDim / 128>(p, at, staged, kHalf * (Traits::kHeadDim / 2));
  if (kHalf == 0) write_lse(p.op.attention, at, softmax);
}

}  // namespace chipmunk::cuda
