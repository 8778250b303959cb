// Checked, plain data for the attention ops. Last dimensions are contiguous but for lse, whose row
// stride may be anything.
#pragma once

#include <cstdint>

#include "params/columns.h"
#include "params/view.h"

namespace chipmunk {

// Views are [batch, heads, rows], of [head_dim] but for lse.
struct AttentionParams {
  DType dtype;  // of q, k, v, out
  View<const void, 3> q, k, v;
  View<void, 3> out;
  View<float, 3> lse;
  int64_t batch, query_heads, kv_heads, queries, keys;
  int32_t head_dim;
  float softmax_scale;
  // A permutation [queries], contiguous: group g holds the rows query_rows[g * G] and on; null: as
  // they come.
  const int32_t* query_rows = nullptr;

  constexpr bool empty() const { return batch == 0 || query_heads == 0 || queries == 0; }
};

struct AttentionColumnSumsParams {
  AttentionParams attention;
  View<const float, 3> reference_lse;  // data null: the exact one
  DType column_sums_dtype;             // float32 or bfloat16
  View<void, 3> column_sums;           // [batch, query_heads, groups] of [keys]
  View<const float, 2> key_weights;    // [batch, kv_heads] of [keys]; data null: all 1
  int32_t query_group;
  int64_t groups;

  constexpr bool empty() const { return attention.empty(); }
};

struct ColumnSparseAttentionParams {
  AttentionParams attention;
  ColumnListsParams columns;
  View<const void, 3> rest_out;  // data null: nothing to merge
  View<const float, 3> rest_lse;

  constexpr bool empty() const { return attention.empty(); }
};

// result = merge(a, b), or rest_of(a, b).
struct CombineAttentionParams {
  DType dtype;
  View<const void, 3> a_out, b_out;
  View<const float, 3> a_lse, b_lse;
  View<void, 3> out;
  View<float, 3> lse;
  int64_t batch, heads, queries;
  int32_t head_dim;

  constexpr bool empty() const { return batch == 0 || heads == 0 || queries == 0; }
};

}  // namespace chipmunk
