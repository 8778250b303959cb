// Stands in for the CUDA backend of the softmax algebra where this build has none.
#include "cuda/attention.h"
#include "cuda/unavailable.h"

namespace chipmunk::cuda {

void merge_attention(const CombineAttentionParams&, const LaunchSite&) {
  unavailable("merge_attention");
}
void rest_of_attention(const CombineAttentionParams&, const LaunchSite&) {
  unavailable("rest_of_attention");
}

}  // namespace chipmunk::cuda
