// CPU backend of the attention ops: splits the work over threads.
#pragma once

#include "params/attention.h"

namespace chipmunk::cpu {

void dense_attention(const AttentionParams& params, int threads);
void dense_attention_column_sums(const AttentionColumnSumsParams& params, int threads);
void column_sparse_attention(const ColumnSparseAttentionParams& params, int threads);
void merge_attention(const CombineAttentionParams& params, int threads);
void rest_of_attention(const CombineAttentionParams& params, int threads);

}  // namespace chipmunk::cpu
