// What is dense attention's own among the types and the shared-memory plan.
#pragma once

#include <type_traits>

#include "cuda/attention/column_sums.cuh"
#include "cuda/attention/dense/config.h"
#include "cuda/attention/dense/params.h"
#include "cuda/attention/traits.cuh"

namespace chipmunk::cuda {

template <class Element, int kHeadDim, bool kSums>
struct DenseTraits : AttentionTraits<Element, kHeadDim, dense_config(kHeadDim, kSums)> {
  using Base = AttentionTraits<Element, kHeadDim, dense_config(kHeadDim, kSums)>;
  using Params = std::conditional_t<kSums, ColumnSumsKernelParams, DenseKernelParams>;

  static constexpr bool kByCopyEngine = true;  // K and V
  static constexpr bool kMayHaveRest = false;
  static constexpr bool kMayKeepReferences = !kSums;
  static constexpr bool kSumsColumns = kSums;
  static constexpr int kWarps = 4 * Base::kWarpgroups;  // of consumers

  static constexpr int kSumStages = column_sum_stages(kHeadDim);

  struct TilesAndSums : Base::template SharedTiles<Work> {
    ColumnSumParts<kSumStages, kWarps, Base::kKeys> sums;
  };
  using Shared = std::conditional_t<kSums, TilesAndSums, typename Base::template SharedTiles<Work>>;
  static constexpr int kSharedBytes = static_cast<int>(sizeof(Shared));
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace chipmunk::cuda
