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
        shared.sums.ring.wait(slot_);
        store_tile(work, keys.first_key(j));
        __syncwarp();
        if (threadIdx.x % 32 == 0) shared.sums.ring.release(slot_);
        ++slot_;
      }
      if (threadIdx.x % 32 == 0) shared.work.release(n);
    }
  }

 private:
  static constexpr int kKeys = Traits::kKeys;

  __device__ __forceinline__ void store_tile(const Work& work, int32_t first_key) {
    const int warps_per_group = p.rows_per_group / 16;
    int32_t group = work.first_row / p.rows_per_group;
#pragma unroll 1
    for (int warp = 0; warp < 4 * work.warpgroups; warp += warps_per_group, ++group) {
      if (static_cast<int64_t>(group) * p.rows_per_group >= p.attention.queries) break;
#pragma unroll 1
      for (int pair = static_cast<int>(threadIdx.x % 32); pair < kKeys / 2; pair += 32) {
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 4
        for (int w = 0; w < warps_per_group; ++w) {
          const float2 part = shared.sums.pairs[warp + w][pair];
          sum.x += part.x;
          sum.y += part.y;
        }
        store(work, group, first_key + 2 * pair, sum);
      }
    }
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
  ColumnSumRing::Position slot_;
};

}  // namespace chipmunk::cuda
