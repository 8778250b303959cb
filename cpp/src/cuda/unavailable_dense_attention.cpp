// Stands in for the CUDA backend of dense attention where this build has none.
#include "cuda/attention.h"
#include "cuda/unavailable.h"

namespace chipmunk::cuda {

void dense_attention(const AttentionParams&, const LaunchSite&) { unavailable("dense_attention"); }
void dense_attention_column_sums(const AttentionColumnSumsParams&, const LaunchSite&) {
  unavailable("dense_attention_column_sums");
}

}  // namespace chipmunk::cuda
