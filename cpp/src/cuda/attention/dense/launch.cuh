// Launches one instantiation of dense attention.
#pragma once

#include "cuda/attention/dense/kernel.cuh"
#include "cuda/host/device_info.h"
#include "cuda/host/launch.h"

namespace chipmunk::cuda {

template <class Traits>
void launch_dense_kernel(const char* name, const typename Traits::Params& params, bool may_split,
                         const LaunchSite& site) {
  const int multiprocessors = device_limits(site.device).multiprocessors;
  typename Traits::Params scheduled = params;
  scheduled.rounds = rounds(params.tiles, multiprocessors, may_split);
  launch(name, dense_attention_sm90<Traits>,
         {.grid = dim3(static_cast<unsigned>(scheduled.rounds.ctas(multiprocessors))),
          .block = dim3(Traits::kThreads),
          .shared_bytes = Traits::kSharedBytes},
         site, scheduled);
}

template <class Element, int kHeadDim>
void launch_dense(const DenseKernelParams& params, const LaunchSite& site) {
  using Traits = DenseTraits<Element, kHeadDim, false>;
  launch_dense_kernel<Traits>("dense_attention", params,
                              splits_last_round(kHeadDim, Traits::kWarpgroups), site);
}

// A group's rows are never in two tiles, nor two parts of one.
template <class Element, int kHeadDim>
void launch_column_sums(const ColumnSumsKernelParams& params, const LaunchSite& site) {
  launch_dense_kernel<DenseTraits<Element, kHeadDim, true>>("dense_attention_column_sums", params,
                                                            /*may_split=*/false, site);
}

}  // namespace chipmunk::cuda
