// Types, tile shapes and the shared-memory plan of the attention kernels.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <algorithm>
#include <cute/arch/mma_sm80.hpp>
#include <cute/tensor.hpp>

#include "cuda/attention/params.h"
#include "cuda/attention/tile_config.h"
#include "cuda/device/accumulator.cuh"
#include "cuda/device/gather.cuh"
#include "cuda/device/ring.cuh"
#include "cuda/device/tile_walk.cuh"
#include "cuda/device/tma.cuh"

namespace chipmunk::cuda {

// A tile with at least one key, as the producer hands it to the consumers.
struct Work {
  int32_t batch, head, first_row;
  int32_t count;       // of keys; 0: no more tiles
  int32_t warpgroups;  // that have rows here
  int32_t backwards;   // 1: keys are read from the end

  __device__ RowPlace place(int32_t row) const { return {batch, head, first_row + row}; }
};

// Where a tile lies.
struct TilePlace {
  int32_t batch, head, in_head;  // in_head: which of the head's tiles
  __device__ TilePlace(const AttentionKernelParams& p, int32_t tile) {
    const auto heads = static_cast<int32_t>(p.attention.query_heads);
    const int32_t batch_head = tile / p.tiles_per_head;
    in_head = tile % p.tiles_per_head;
    batch = batch_head / heads;
    head = batch_head % heads;
  }
};

// The caller's row that has a place among the groups; `position` < queries.
__device__ __forceinline__ int32_t row_of(const AttentionParams& a, int32_t position) {
  return a.query_rows == nullptr ? position : __ldg(a.query_rows + position);
}

// Tiles of keys come ragged first: tile 0 of `count` keys has [0, first) of them, so that every
// later tile is full.
template <int kKeys>
struct KeyTiles {
  int32_t tiles, first;
  __device__ explicit KeyTiles(int32_t count)
      : tiles((count + kKeys - 1) / kKeys), first(count - (tiles - 1) * kKeys) {}
};

template <class Element_, int kHeadDim_, TileConfig kConfig_>
struct AttentionTraits {
  using Element = Element_;  // __nv_bfloat16 or __half
  static constexpr int kHeadDim = kHeadDim_;

  static constexpr TileConfig kConfig = kConfig_;
  static constexpr int kWarpgroups = kConfig.warpgroups;
  static constexpr int kQueries = kConfig.query_rows();
  static constexpr int kKeys = kConfig.keys;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kThreads = kConfig.threads();
  static constexpr int kPadded = padded_head_dim(kHeadDim);
  static constexpr int kPanels = kPadded / kPanelElements;
  static constexpr bool kOverlapped = kConfig.overlapped;
  static constexpr bool kHoldsQueries = kConfig.holds_queries;
  static constexpr int kWorkSlots = 4;

  using MmaElement =
      std::conditional_t<std::is_same_v<Element, __half>, cutlass::half_t, cutlass::bfloat16_t>;
  using KMajor = cute::GMMA::Layout_K_SW128_Atom<MmaElement>;
  using MnMajor = cute::GMMA::Layout_MN_SW128_Atom<MmaElement>;
  using LayoutQ = decltype(cute::tile_to_shape(
      KMajor{}, cute::Shape<cute::Int<64>, cute::Int<kPadded>>{}));  // (rows, dim), a warpgroup's
  using LayoutK = decltype(cute::tile_to_shape(
      KMajor{}, cute::Shape<cute::Int<kKeys>, cute::Int<kPadded>, cute::Int<kStages>>{}));
  // The bytes of LayoutK, read as (dim, keys, stages).
  using LayoutV = decltype(cute::tile_to_shape(
      MnMajor{}, cute::Shape<cute::Int<kPadded>, cute::Int<kKeys>, cute::Int<kStages>>{},
      cute::Step<cute::_2, cute::_1, cute::_3>{}));

  using ShapeQK = cute::Shape<cute::_64, cute::Int<kKeys>, cute::_16>;
  using MmaQK = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<MmaElement, MmaElement, float, ShapeQK>()));
  using MmaOfHeldQueries = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<MmaElement, MmaElement, float, ShapeQK>()));
  template <int kColumns>
  using MmaOfWeights = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<MmaElement, MmaElement, float,
                                 cute::Shape<cute::_64, cute::Int<kColumns>, cute::_16>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::MN>()));
  using MmaPV = MmaOfWeights<kHeadDim>;
  using PaddedMmaPV = MmaOfWeights<kPadded>;  // for the layout of V alone

  using WarpMma =
      std::conditional_t<std::is_same_v<Element, __half>, cute::SM80_16x8x16_F32F16F16F32_TN,
                         cute::SM80_16x8x16_F32BF16BF16F32_TN>;

  static constexpr int kTileBytes = 2 * kKeys * kPadded;  // of K or V
  // A tile's rest and result: the first rows in a stage of V, which is free sooner, the others in
  // one of K; the rest's lse in the former's last KB, so many bytes from the stage's start.
  static constexpr int kRestLse = kTileBytes - 8 * 128;
  static constexpr int kRowsInV = std::min(kQueries, (kKeys - 8) / 16 * 16);
  static constexpr int kRowsInK = kQueries - kRowsInV;
  static_assert(kRowsInK <= kKeys && kQueries * 4 <= 8 * 128);

  // Arrivals: `empty` and `work`, a lane of each consumer warp, and of each further reader of
  // `work`; `queries_full`, the copy engine after one thread's request, or, where rows are gathered
  // by index, every thread of the warpgroup.
  template <class TileWork>
  struct alignas(1024) SharedTiles {
    alignas(1024) MmaElement q[kWarpgroups][64 * kPadded];
    alignas(1024) MmaElement k[kStages * kKeys * kPadded];
    alignas(1024) MmaElement v[kStages * kKeys * kPadded];
    Ring<kStages> k_ring, v_ring;
    TransactionBarrier queries_full[kWarpgroups];
    TileWalk<TileWork, kWorkSlots> work;

    __device__ void init(uint32_t producers, bool by_index, uint32_t further_readers = 0) {
      constexpr uint32_t kConsumers = 4 * kWarpgroups;
      k_ring.init(producers, kConsumers);
      v_ring.init(producers, kConsumers);
      work.init(kConsumers + further_readers);
      for (TransactionBarrier& full : queries_full) full.init(by_index ? 128 : 1);
    }
    __device__ __forceinline__ char* k_stage(int stage) {
      return reinterpret_cast<char*>(k) + stage * kTileBytes;
    }
    __device__ __forceinline__ char* v_stage(int stage) {
      return reinterpret_cast<char*>(v) + stage * kTileBytes;
    }
  };
};

// A warpgroup's queries of a tile, by one thread, when no product reads the old ones any more.
template <class Traits>
__device__ __forceinline__ void ask_for_queries(const AttentionKernelParams& p,
                                                typename Traits::Shared& shared, const Work& work,
                                                int warpgroup) {
  load_panels<64, Traits::kPanels, CacheHint::kEvictFirst>(
      p.q, shared.queries_full[warpgroup], reinterpret_cast<char*>(shared.q[warpgroup]),
      work.place(64 * warpgroup));
}

// The same where rows are picked by index, by all threads of the warpgroup.
template <class Traits>
__device__ __forceinline__ void gather_queries(const AttentionParams& a,
                                               typename Traits::Shared& shared, const Work& work,
                                               int warpgroup) {
  const Gather<64, 2 * Traits::kHeadDim> gather(static_cast<int>(read_thread() % 128));
  const int32_t position = work.first_row + 64 * warpgroup + gather.owned_row() % 64;
  const int32_t row = row_of(a, min(position, static_cast<int32_t>(a.queries) - 1));
  gather.load(static_cast<const char*>(a.q.data) + 2 * a.q.offset(work.batch, work.head, 0) +
                  gather.chunk_bytes(),
              static_cast<int32_t>(2 * a.q.strides[2]), row,
              cute::cast_smem_ptr_to_uint(shared.q[warpgroup]));
  cutlass::arch::cpasync_barrier_arrive_noinc(
      reinterpret_cast<const uint64_t*>(&shared.queries_full[warpgroup]));
}

}  // namespace chipmunk::cuda
