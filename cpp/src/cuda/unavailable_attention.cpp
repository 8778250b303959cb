// Stands in for the CUDA backend of the attention ops where this build has none.
#include "cuda/attention.h"
#include "cuda/unavailable.h"

namespace chipmunk::cuda {
void dense_attention(const AttentionParams&, const LaunchSite&) { unavailable("dense_attention"); }
void dense_attention_column_sums(const AttentionColumnSumsParams&, const LaunchSite&) {
  unavailable("dense_attention_column_sums");
}
void column_sparse_attention(const ColumnSparseAttentionParams&, const LaunchSite&) {
  unavailable("column_sparse_attention");
}
void merge_attention(const CombineAttentionParams&, const LaunchSite&) {
  unavailable("merge_attention");
}
void rest_of_attention(const CombineAttentionParams&, const LaunchSite&) {
  unavailable("rest_of_attention");
}

}  // namespace chipmunk::cuda
