// The ops that have no CUDA kernel in any build yet.
#include "cuda/mlp.h"
#include "cuda/no_kernel.h"

namespace chipmunk::cuda {

void column_sparse_fc1(const ColumnSparseFc1Params&, const LaunchSite&) {
  no_kernel("column_sparse_fc1");
}
void column_sparse_fc2(const ColumnSparseFc2Params&, const LaunchSite&) {
  no_kernel("column_sparse_fc2");
}

}  // namespace chipmunk::cuda
