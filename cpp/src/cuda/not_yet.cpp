// The ops that have no CUDA kernel in any build yet.
#include "cuda/attention.h"
#include "cuda/mlp.h"
#include "cuda/no_kernel.h"

namespace chipmunk::cuda {

void dense_attention(const AttentionParams&, const LaunchSite&) { no_kernel("dense_attention"); }
void dense_attention_column_sums(const AttentionColumnSumsParams&, const LaunchSite&) {
  no_kernel("dense_attention_column_sums");
}
void column_sparse_fc1(const ColumnSparseFc1Params&, const LaunchSite&) {
  no_kernel("column_sparse_fc1");
}
void column_sparse_fc2(const ColumnSparseFc2Params&, const LaunchSite&) {
  no_kernel("column_sparse_fc2");
}

}  // namespace chipmunk::cuda
