// Adds up what the consumer warps have summed of each tile of keys, and stores it.
#pragma once

#include <cuda_bf16.h>

#include "cuda/attention/dense/producer.cuh"

namespace chipmunk::cuda {

// One warp. A lane has two pairs of neighbouring columns of every tile.
template <class Traits>
class ColumnSumsWriter {
 public:
  __device__ __forceinline__ ColumnSumsWriter(const ColumnSumsKernelParams& params,
                                              typename Traits::Shared& storage)
      : p(params), shared(storage) {}

  __device__ __forceinline__ void run() {
    for (uint32_t n = 0; shared.work.wait(n).count > 0; ++n) {
      const Work work = shared.work[n];
      const KeyOrder<kKeys> keys(work);
#pragma unroll 1
      for (int32_t j = 0; j < keys.tiles; ++j) {
        const auto slot = slot_.of_writer();
        shared.sums.ring.wait(slot);
        store_tile(work, keys.first_key(j), slot.stage);
        __syncwarp();
        if (threadIdx.x % 32 == 0) shared.sums.ring.release(slot);
        ++slot_.count;
      }
      if (threadIdx.x % 32 == 0) shared.work.release(n);
    }
  }

 private:
  static constexpr int kKeys = Traits::kKeys;

  // A lane has the pairs lane and lane + 32 of the tile's kPairs.
  static constexpr int kPairs = kKeys / 2;
  static_assert(kPairs > 32 && kPairs <= 64);

  __device__ __forceinline__ void store_tile(const Work& work, int32_t first_key, int stage) {
    const auto& parts = shared.sums.pairs[stage];
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int second = min(lane + 32, kPairs - 1);
    const int warps_per_group = p.rows_per_group / 16;  // a multiple of 4
    int32_t group = work.first_row / p.rows_per_group;
#pragma unroll 1
    for (int warp = 0; warp < 4 * work.warpgroups; warp += warps_per_group, ++group) {
      if (static_cast<int64_t>(group) * p.rows_per_group >= p.attention.queries) break;
      float2 sums[2] = {};
#pragma unroll 1
      for (int w = warp; w < warp + warps_per_group; w += 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          add(sums[0], parts[w + i][lane]);
          add(sums[1], parts[w + i][second]);
        }
      }
      store(work, group, first_key + 2 * lane, sums[0]);
      if (lane + 32 < kPairs) store(work, group, first_key + 2 * second, sums[1]);
    }
  }
  static __device__ __forceinline__ void add(float2& sum, const float2& part) {
    sum.x += part.x;
    sum.y += part.y;
  }
  __device__ __forceinline__ void store(const Work& work, int32_t group, int32_t key, float2 sum) {
    const auto keys = static_cast<int32_t>(p.attention.keys);
    if (key >= keys) return;
    const bool both = key + 1 < keys;
    if (p.key_weights.data != nullptr) {
      const float* weight =
          p.key_weights.data +
          p.key_weights.offset(work.batch, work.head / p.query_heads_per_kv_head) + key;
      sum.x *= __ldg(weight);
      if (both) sum.y *= __ldg(weight + 1);
    }
    const int64_t at = p.sums.offset(work.batch, work.head, group) + key;
    if (p.sums_are_float) {
      store_pair(static_cast<float*>(p.sums.data) + at, sum, both);
    } else {
      store_pair(static_cast<__nv_bfloat16*>(p.sums.data) + at, __floats2bfloat162_rn(sum.x, sum.y),
                 both);
    }
  }
  template <class Sum, class Pair>
  __device__ __forceinline__ void store_pair(Sum* to, const Pair& pair, bool both) const {
    if (both && p.sums_in_pairs) {
      *reinterpret_cast<Pair*>(to) = pair;
    } else {
      to[0] = pair.x;
      if (both) to[1] = pair.y;
    }
  }

  const ColumnSumsKernelParams& p;
  typename Traits::Shared& shared;
  SumPosition<Traits::kSumStages> slot_;
};

}  // namespace chipmunk::cuda
