// Stands in for the CUDA backend of column-sparse attention where this build has none.
#include "cuda/attention.h"
#include "cuda/unavailable.h"

namespace chipmunk::cuda {

void column_sparse_attention(const ColumnSparseAttentionParams&, const LaunchSite&) {
  unavailable("column_sparse_attention");
}

}  // namespace chipmunk::cuda
