// The end of a tile whose rows two warpgroups share.
#pragma once

#include "cuda/attention/column_sparse_epilogue.cuh"
#include "cuda/device/barriers.cuh"

namespace chipmunk::cuda {

// What a warp of one warpgroup leaves for the same warp of the other, in a stage of K or V: sums of
// half the columns, and its rows' references and sums of weights. The first half of it is where the
// reader's result goes.
template <class Traits>
class WarpPart {
 public:
  static constexpr int kVectors = Traits::kHeadDim / 16;  // of a lane

  __device__ __forceinline__ WarpPart(char* stage, int row_offset)
      : own_(stage + row_offset + static_cast<int>(threadIdx.x % 32) * 16),
        more_(stage + kPanelsEnd + row_offset * 2 + static_cast<int>(threadIdx.x % 32) * 16),
        scale_(stage + kScales + row_offset / 4 + static_cast<int>(threadIdx.x % 32) * 16) {}

  __device__ __forceinline__ float4& vector(int i) const {
    constexpr int kInPanel = kWarpPanelBytes / kVectorBytes;
    return *reinterpret_cast<float4*>(
        i < kPanels * kInPanel ? own_ + i / kInPanel * kPanelBytes + i % kInPanel * kVectorBytes
                               : more_ + (i - kPanels * kInPanel) * kVectorBytes);
  }
  __device__ __forceinline__ float4& scale() const { return *reinterpret_cast<float4*>(scale_); }

 private:
  static constexpr int kPanels = Traits::kHeadDim / 128;  // of half the columns
  static constexpr int kPanelBytes = Traits::kKeys * 128, kWarpPanelBytes = 16 * 128;
  static constexpr int kVectorBytes = 32 * 16;
  static constexpr int kPanelsEnd = kPanels * kPanelBytes;
  static constexpr int kScales = kPanelsEnd + 4 * kPanels * kWarpPanelBytes;
  static_assert(kVectors * kVectorBytes == 2 * kPanels * kWarpPanelBytes);
  static_assert(kScales + 4 * kVectorBytes <= Traits::RowGather::kTileBytes);

  char *own_, *more_, *scale_;
};

// Both warpgroups have sums of all columns, each over its own keys. Each hands over those of half
// the columns, and merges and writes the other half: `kHalf`. The parts go through stages of K and
// V: `to` and `from`; the warp's rows of the result are in `from`, `row_offset` bytes on.
template <class Traits, int kHalf>
__device__ __forceinline__ void write_half(const ColumnSparseKernelParams& p, const RowPlace& at,
                                           char* to, char* from, int row_offset,
                                           OnlineSoftmax& softmax,
                                           float (&out)[Traits::kHeadDim / 2]) {
  using Part = WarpPart<Traits>;
  constexpr int kWords = Traits::kHeadDim / 4;  // of the accumulator, in half the columns
  constexpr int kMine = kHalf * kWords, kOther = kWords - kMine;
  {
    const Part part(to, row_offset);
#pragma unroll
    for (int i = 0; i < Part::kVectors; ++i) {
      const float* x = &out[kOther + 4 * i];
      part.vector(i) = make_float4(x[0], x[1], x[2], x[3]);
    }
    part.scale() =
        make_float4(softmax.reference[0], softmax.reference[1], softmax.sum[0], softmax.sum[1]);
  }
  named_arrive(kPart + (1 - kHalf), 256);
  named_sync(kPart + kHalf, 256);
  const Part part(from, row_offset);
  const float4 scale = part.scale();
  const float reference[2] = {scale.x, scale.y}, others[2] = {scale.z, scale.w};
  float sum[2], own[2], other[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    softmax.add_sum(r, reference[r], others[r], own[r], other[r]);
    sum[r] = quad_sum(softmax.sum[r]);
    own[r] *= reciprocal_of_sum(sum[r]);
    other[r] *= reciprocal_of_sum(sum[r]);
  }
  uint32_t merged[Part::kVectors / 2][4];
#pragma unroll
  for (int i = 0; i < Part::kVectors / 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 y = part.vector(2 * i + half);
      const float* x = &out[kMine + 8 * i + 4 * half];
      merged[i][2 * half] = pack_pair<typename Traits::Element>(fmaf(y.x, other[0], x[0] * own[0]),
                                                                fmaf(y.y, other[0], x[1] * own[0]));
      merged[i][2 * half + 1] = pack_pair<typename Traits::Element>(
          fmaf(y.z, other[1], x[2] * own[1]), fmaf(y.w, other[1], x[3] * own[1]));
    }
    __syncwarp();  // keeps the compiler from loading everything first; at the end, all have read
  }
  const StagedRows<Traits> staged{from + row_offset};
  const StagedMatrices<Traits> matrices(staged);
#pragma unroll
  for (int i = 0; i < Part::kVectors / 2; ++i) matrices.write(i, merged[i]);
  store_staged<Traits::kHeadDim / 128>(p, at, staged, kHalf * (Traits::kHeadDim / 2));
  if (kHalf == 0) write_lse(p.op.attention, at, softmax, sum);
}

}  // namespace chipmunk::cuda
