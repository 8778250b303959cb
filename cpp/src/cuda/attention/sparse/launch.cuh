// Launches one instantiation of column-sparse attention.
#pragma once

#include "cuda/attention/sparse/kernel.cuh"
#include "cuda/host/device_info.h"
#include "cuda/host/launch.h"

namespace chipmunk::cuda {

template <class Element, int kHeadDim, int kRowBlocks>
void launch_column_sparse(const ColumnSparseKernelParams& params, const LaunchSite& site) {
  using Traits = ColumnSparseTraits<Element, kHeadDim, kRowBlocks>;
  const int multiprocessors = device_limits(site.device).multiprocessors;
  ColumnSparseKernelParams scheduled = params;
  scheduled.rounds = rounds(params.tiles, multiprocessors, splits_last_round(kHeadDim, kRowBlocks));
  // An order may split lists of its own.
  const bool by_order = params.columns.order != nullptr;
  const int ctas = by_order ? multiprocessors : scheduled.rounds.ctas(multiprocessors);
  launch("column_sparse_attention", column_sparse_attention_sm90<Traits>,
         {.grid = dim3(static_cast<unsigned>(ctas)),
          .block = dim3(Traits::kThreads),
          .shared_bytes = Traits::kSharedBytes},
         site, scheduled);
}

}  // namespace chipmunk::cuda
