// Types, tile shapes and the shared-memory plan of column-sparse attention.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <algorithm>
#include <cute/arch/mma_sm80.hpp>
#include <cute/tensor.hpp>

#include "cuda/attention/sparse/config.h"
#include "cuda/attention/sparse/params.h"
#include "cuda/device/gather.cuh"
#include "cuda/device/ring.cuh"
#include "cuda/device/tile_walk.cuh"
#include "cuda/device/tma.cuh"

namespace chipmunk::cuda {

// A tile with at least one key, as the producer hands it to the consumers and to its own threads.
struct alignas(16) Work {
  const int32_t* list;
  int32_t batch, head, first_row;
  int32_t count;       // of the list; 0: no more tiles
  int32_t warpgroups;  // that have rows here
  int32_t backwards;   // 1: the list is read from its end

  __device__ RowPlace place(int32_t row) const { return {batch, head, first_row + row}; }
};

// Tiles of keys come ragged first: tile 0 of a list of `count` columns covers positions [0, first),
// so that every later tile is full.
template <int kKeys>
struct KeyTiles {
  int32_t tiles, first;
  __device__ explicit KeyTiles(int32_t count)
      : tiles((count + kKeys - 1) / kKeys), first(count - (tiles - 1) * kKeys) {}
};

template <class Element_, int kHeadDim_, int kRowBlocks_>
struct ColumnSparseTraits {
  using Element = Element_;  // __nv_bfloat16 or __half
  static constexpr int kHeadDim = kHeadDim_;

  static constexpr TileConfig kConfig = column_sparse_config(kHeadDim, kRowBlocks_);
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

  using RowGather = Gather<kKeys, 2 * kHeadDim>;
  static constexpr int kTileBytes = RowGather::kTileBytes;
  static_assert(kTileBytes == 2 * kKeys * kPadded);
  // A tile's rest and result: the first rows in a stage of V, which is free sooner, the others in
  // one of K; the rest's lse in the former's last KB, so many bytes from the stage's start.
  static constexpr int kRestLse = kTileBytes - 8 * 128;
  static constexpr int kRowsInV = std::min(kQueries, (kKeys - 8) / 16 * 16);
  static constexpr int kRowsInK = kQueries - kRowsInV;
  static_assert(kRowsInK <= kKeys && kQueries * 4 <= 8 * 128);

  // Arrivals: k and v `full`, every producer thread; `empty` and `work`, a lane of each consumer
  // warp. `queries_full`, one of each warpgroup: the copy engine, after one thread's request.
  struct alignas(1024) Shared {
    alignas(1024) MmaElement q[kWarpgroups][64 * kPadded];
    alignas(1024) MmaElement k[kStages * kKeys * kPadded];
    alignas(1024) MmaElement v[kStages * kKeys * kPadded];
    Ring<kStages> k_ring, v_ring;
    TransactionBarrier queries_full[kWarpgroups];
    TileWalk<Work, kWorkSlots> work;

    __device__ void init() {
      constexpr uint32_t kProducers = 128, kConsumers = 4 * kWarpgroups;
      k_ring.init(kProducers, kConsumers);
      v_ring.init(kProducers, kConsumers);
      work.init(kConsumers);
      for (TransactionBarrier& full : queries_full) full.init(1);
    }
    __device__ __forceinline__ char* k_stage(int stage) {
      return reinterpret_cast<char*>(k) + stage * kTileBytes;
    }
    __device__ __forceinline__ char* v_stage(int stage) {
      return reinterpret_cast<char*>(v) + stage * kTileBytes;
    }
  };
  static constexpr int kSharedBytes = static_cast<int>(sizeof(Shared));
  static_assert(kSharedBytes <= 227 * 1024);
};

// A warpgroup's queries of a tile, by one thread, when no product reads the old ones any more.
template <class Traits>
__device__ __forceinline__ void ask_for_queries(const ColumnSparseKernelParams& p,
                                                typename Traits::Shared& shared, const Work& work,
                                                int warpgroup) {
  load_panels<64, Traits::kPanels>(p.q, shared.queries_full[warpgroup],
                                   reinterpret_cast<char*>(shared.q[warpgroup]),
                                   work.place(64 * warpgroup));
}

}  // namespace chipmunk::cuda
