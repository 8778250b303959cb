// Types, tile shapes and the shared-memory plan of column-sparse attention.
#pragma once

// Without it CuTe makes up a product 112 wide of narrow ones.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <algorithm>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <cute/tensor.hpp>

#include "cuda/attention/column_sparse_order.cuh"
#include "cuda/attention/column_sparse_params.h"
#include "cuda/attention/tile_config.h"
#include "cuda/device/barriers.cuh"
#include "cuda/device/gather.cuh"

namespace chipmunk::cuda {

// A tile with at least one key to look at, as the producer hands it to the consumers and to its own
// other threads.
struct alignas(16) Work {
  const int32_t* list;
  int32_t batch, head, first_row;
  int32_t count;        // of the list; 0: no more tiles
  int32_t warpgroups;   // that have rows here
  int32_t shares_rows;  // 1: both have the same 64 rows, and every other tile of keys

  __device__ int32_t row_blocks() const { return shares_rows ? 1 : warpgroups; }
};

// Tiles of keys come ragged first: tile 0 of a list of `count` columns covers positions [0, first),
// so that every later tile is full. Where warpgroups share rows, there are two tiles at least: the
// second may be empty.
template <int kKeys>
struct KeyTiles {
  int32_t tiles, first, second;  // positions in the first and the second tile
  __device__ KeyTiles(int32_t count, bool shares_rows)
      : tiles((count + kKeys - 1) / kKeys),
        first(count - (tiles - 1) * kKeys),
        second(tiles > 1 ? kKeys : 0) {
    if (shares_rows) tiles = max(tiles, 2);
  }
};

template <class Element_, int kHeadDim_, int kRowBlocks_>
struct ColumnSparseTraits {
  using Element = Element_;  // __nv_bfloat16 or __half
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRowBlocks = kRowBlocks_;  // of a tile, 64 rows each

  static constexpr TileConfig kConfig = column_sparse_config(kHeadDim, kRowBlocks);
  static constexpr int kWarpgroups = kConfig.warpgroups;
  static constexpr int kQueries = 64 * kRowBlocks;
  static constexpr int kKeys = kConfig.keys;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kQuerySteps = kConfig.query_steps;
  static constexpr int kThreads = kConfig.threads();
  static constexpr int kPadded = padded_head_dim(kHeadDim);

  static constexpr int kWorkSlots = 4;
  // Scores, weights and output have registers of their own: QK of a tile of keys and PV of the one
  // before are under way together, and PV goes on behind the softmax.
  static constexpr bool kOverlapped = kRowBlocks == 1 || (kRowBlocks == 2 && kHeadDim <= 128);
  static constexpr bool kSharesRows = shares_rows(kHeadDim, kRowBlocks);
  // K of a tile of keys comes before V of the tile before: the products of both start together, or
  // the other warpgroup wants K at once.
  static constexpr bool kWantsKFirst = kOverlapped || kSharesRows;
  // Whether a CTA's last tile may have no rows for a warpgroup; otherwise all have rows of all.
  static constexpr bool kMaySitOut = small_parts(kHeadDim, kRowBlocks) > 0 && !kSharesRows;

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

  using MmaQK = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<MmaElement, MmaElement, float,
                                 cute::Shape<cute::_64, cute::Int<kKeys>, cute::_16>>()));
  using MmaOfHeldQueries = decltype(cute::make_tiled_mma(  // in registers
      cute::GMMA::rs_op_selector<MmaElement, MmaElement, float,
                                 cute::Shape<cute::_64, cute::Int<kKeys>, cute::_16>>()));
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

  using RowGather = Gather<kKeys, kHeadDim>;
  static_assert(RowGather::kTileBytes == 2 * kKeys * kPadded);
  // A tile's rest and result: the first rows in a stage of V, which is free sooner, the others in
  // one of K; the rest's lse in the former's last KB, so many bytes from the stage's start.
  static constexpr int kRestLse = RowGather::kTileBytes - 8 * 128;
  static constexpr int kRowsInV = std::min(64 * kWarpgroups, (kKeys - 8) / 16 * 16);
  static constexpr int kRowsInK = 64 * kWarpgroups - kRowsInV;
  static_assert(kRowsInK <= kKeys && 64 * kWarpgroups * 4 <= 8 * 128);

  // Barriers, one of each per stage, and per warpgroup for `queries`:
  //
  // | barrier      | arrive                                   | wait      | count            |
  // |--------------|------------------------------------------|-----------|------------------|
  // | k/v_full     | every producer thread's copies, by noinc | consumers | 128              |
  // |              | (a stage for the result: the thread)     |           |                  |
  // | k/v_empty    | a lane of each consumer warp             | producer  | 4 * kWarpgroups  |
  // | queries_full | the copy engine, after one thread's ask  | warpgroup | 1 + bytes        |
  // | work_full    | producer thread 0                        | consumers | 1                |
  // | work_empty   | a lane of each consumer warp             | producer  | 4 * kWarpgroups  |
  // | order_ready  | a lane of each consumer warp, once       | producer  | 4 * kWarpgroups  |
  struct alignas(1024) Shared {
    alignas(1024) MmaElement q[kWarpgroups][64 * kPadded];
    alignas(1024) MmaElement k[kStages * kKeys * kPadded];
    alignas(1024) MmaElement v[kStages * kKeys * kPadded];
    Barrier k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
    TransactionBarrier queries_full[kWarpgroups];
    Barrier work_full[kWorkSlots], work_empty[kWorkSlots];
    Work work[kWorkSlots];
    Barrier order_ready;
    TileOrder order;
  };
  static constexpr int kSharedBytes = static_cast<int>(sizeof(Shared));
  static_assert(kSharedBytes <= 227 * 1024);
};

// threadIdx.x, but not a loop invariant to the compiler, which would keep its multiples in
// registers.
__device__ __forceinline__ uint32_t read_thread() {
  uint32_t thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

template <class Traits>
__device__ __forceinline__ int32_t first_row(const Work& work, int w) {
  return Traits::kSharesRows && work.shares_rows ? work.first_row : work.first_row + w * 64;
}

// A warpgroup's queries of a tile, by one thread, when no product reads the old ones any more.
template <class Traits>
__device__ __forceinline__ void ask_for_queries(const ColumnSparseKernelParams& p,
                                                typename Traits::Shared& shared, const Work& work,
                                                int w) {
  shared.queries_full[w].arrive_and_expect_tx(sizeof(shared.q[w]));
#pragma unroll
  for (int panel = 0; panel < Traits::kPadded / 64; ++panel) {
    cute::SM90_TMA_LOAD_4D::copy(&p.q, reinterpret_cast<uint64_t*>(&shared.queries_full[w]),
                                 static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST),
                                 shared.q[w] + panel * 64 * 64, panel * 64,
                                 first_row<Traits>(work, w), work.head, work.batch);
  }
}

}  // namespace chipmunk::cuda
