// CUDA backend of the attention ops, asynchronous on the stream of `site`.
#pragma once

#include "cuda/launch_site.h"
#include "params/attention.h"

namespace chipmunk::cuda {

void dense_attention(const AttentionParams& params, const LaunchSite& site);
void dense_attention_column_sums(const AttentionColumnSumsParams& params, const LaunchSite& site);
void column_sparse_attention(const ColumnSparseAttentionParams& params, const LaunchSite& site);
void merge_attention(const CombineAttentionParams& params, const LaunchSite& site);
void rest_of_attention(const CombineAttentionParams& params, const LaunchSite& site);

}  // namespace chipmunk::cuda
