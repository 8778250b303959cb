// CUDA backend of the MLP ops, asynchronous on the stream of `site`.
#pragma once

#include "cuda/launch_site.h"
#include "params/mlp.h"

namespace chipmunk::cuda {

void column_sparse_fc1(const ColumnSparseFc1Params& params, const LaunchSite& site);
void column_sparse_fc2(const ColumnSparseFc2Params& params, const LaunchSite& site);

}  // namespace chipmunk::cuda
