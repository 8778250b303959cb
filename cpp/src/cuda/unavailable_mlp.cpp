// Stands in for the CUDA backend of the MLP ops where this build has none.
#include "cuda/mlp.h"
#include "cuda/unavailable.h"

namespace chipmunk::cuda {
void column_sparse_fc1(const ColumnSparseFc1Params&, const LaunchSite&) {
  unavailable("column_sparse_fc1");
}
void column_sparse_fc2(const ColumnSparseFc2Params&, const LaunchSite&) {
  unavailable("column_sparse_fc2");
}

}  // namespace chipmunk::cuda
