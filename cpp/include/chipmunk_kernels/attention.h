// Attention over all keys, over selected columns, and the softmax algebra that joins the two.
//
// Shapes: q [batch, query_heads, queries, head_dim]; k, v [batch, kv_heads, keys, head_dim] with
// query_heads a multiple of kv_heads; out as q; lse [batch, query_heads, queries] float32, the
// natural logarithm of the sum of exp of the scaled scores. Strides are free but for the contiguous
// last dimension. q, k, v and out share one dtype: float32 (CPU only), bfloat16 or float16.
#pragma once

#include "chipmunk_kernels/columns.h"
#include "chipmunk_kernels/context.h"
#include "chipmunk_kernels/export.h"
#include "chipmunk_kernels/tensor.h"

namespace chipmunk {

// Softmax attention over some set of keys, complete with the log-sum-exp that merging needs.
struct AttentionPart {
  TensorView out;  // [batch, query_heads, queries, head_dim]
  TensorView lse;  // [batch, query_heads, queries] float32
};

// `query_rows` [queries] int32, contiguous, or null: a permutation; group g holds the rows
// query_rows[g * query_group] and on, while all tensors stay in the caller's order. A row out of
// range is undefined behaviour. The result of dense_attention does not depend on it.
CHIPMUNK_API void dense_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                                  const TensorView* query_rows, float softmax_scale,
                                  const AttentionPart& result, const Context& context);

// column_sums[b, h, g, j] = sum over the rows i of group g of exp(score_ij - reference_lse_i).
//   reference_lse  [batch, query_heads, queries] float32, or null: the exact one, in two passes
//   key_weights    [batch, kv_heads, keys] float32, or null: factors of the sums of their keys
//   column_sums    [batch, query_heads, groups, keys] float32 or bfloat16
CHIPMUNK_API void dense_attention_column_sums(const TensorView& q, const TensorView& k,
                                              const TensorView& v, const TensorView* reference_lse,
                                              const TensorView* key_weights,
                                              const TensorView* query_rows, int32_t query_group,
                                              float softmax_scale, const AttentionPart& result,
                                              const TensorView& column_sums,
                                              const Context& context);

// Attention over the selected columns only, merged with `rest` (attention over all others) if
// given. `rest` may be the result itself: each row is read before it is written.
CHIPMUNK_API void column_sparse_attention(const TensorView& q, const TensorView& k,
                                          const TensorView& v, const ColumnLists& columns,
                                          const AttentionPart* rest, const TensorView* query_rows,
                                          float softmax_scale, const AttentionPart& result,
                                          const Context& context);

// The attention over the union of two disjoint sets of keys.
CHIPMUNK_API void merge_attention(const AttentionPart& a, const AttentionPart& b,
                                  const AttentionPart& result, const Context& context);

// The part of `whole` that `selected` leaves: merging the result with `selected` gives `whole`.
CHIPMUNK_API void rest_of_attention(const AttentionPart& whole, const AttentionPart& selected,
                                    const AttentionPart& result, const Context& context);

}  // namespace chipmunk
