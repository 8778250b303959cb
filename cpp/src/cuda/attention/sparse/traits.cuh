// What is column-sparse attention's own among the types and the shared-memory plan.
#pragma once

#include "cuda/attention/sparse/config.h"
#include "cuda/attention/sparse/params.h"
#include "cuda/attention/traits.cuh"

namespace chipmunk::cuda {

// `count` is the list's.
struct alignas(16) ListWork : Work {
  const int32_t* list;
};

template <class Element, int kHeadDim, int kRowBlocks>
struct ColumnSparseTraits
    : AttentionTraits<Element, kHeadDim, column_sparse_config(kHeadDim, kRowBlocks)> {
  using Base = AttentionTraits<Element, kHeadDim, column_sparse_config(kHeadDim, kRowBlocks)>;
  using Params = ColumnSparseKernelParams;
  using RowGather = Gather<Base::kKeys, 2 * kHeadDim>;
  static_assert(RowGather::kTileBytes == Base::kTileBytes);

  static constexpr bool kByCopyEngine = false;  // K and V
  static constexpr bool kMayHaveRest = true;
  static constexpr bool kMayKeepReferences = false;
  static constexpr bool kSumsColumns = false;
  static constexpr int kSumStages = 1;  // of none

  using Shared = typename Base::template SharedTiles<ListWork>;
  static constexpr int kSharedBytes = static_cast<int>(sizeof(Shared));
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace chipmunk::cuda
