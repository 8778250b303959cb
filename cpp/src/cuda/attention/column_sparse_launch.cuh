// Launches one instantiation of column-sparse attention.
#pragma once

#include <algorithm>

#include "cuda/attention/column_sparse_kernel.cuh"
#include "cuda/device_info.h"
#include "cuda/launch.h"

namespace chipmunk::cuda {

template <class Element, int kHeadDim, int kWarpgroups>
void launch_column_sparse(const ColumnSparseKernelParams& params, const LaunchSite& site) {
  using Traits = ColumnSparseTraits<Element, kHeadDim, kWarpgroups>;
  const int multiprocessors = device_limits(site.device).multiprocessors;
  ColumnSparseKernelParams scheduled = params;
  scheduled.rounds = rounds(params.tiles, multiprocessors, Traits::kSplitWarpgroups > 0);
  launch("column_sparse_attention", column_sparse_attention_sm90<Traits>,
         {.grid = dim3(static_cast<unsigned>(std::min(multiprocessors, scheduled.rounds.items))),
          .block = dim3(Traits::kThreads),
          .shared_bytes = Traits::kSharedBytes},
         site, scheduled);
}

}  // namespace chipmunk::cuda
