// Checked, plain data for the attention ops. Strides are in elements; last dimensions are
// contiguous but for lse, whose row stride may be anything.
#pragma once

#include <cstdint>

#include "chipmunk_kernels/tensor.h"
#include "params/columns.h"

namespace chipmunk {

// [batch, heads, rows, head_dim], or [batch, heads, rows] for lse.
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0;

  constexpr int64_t offset(int64_t batch, int64_t head, int64_t row) const {
    return batch * batch_stride + head * head_stride + row * row_stride;
  }
};

struct AttentionParams {
  DType dtype;  // of q, k, v, out
  HeadRows<const void> q, k, v;
  HeadRows<void> out;
  HeadRows<float> lse;
  int64_t batch, query_heads, kv_heads, queries, keys;
  int32_t head_dim;
  float softmax_scale;
};

struct AttentionColumnSumsParams {
  AttentionParams attention;
  HeadRows<const float> reference_lse;  // data null: the exact one
  DType column_sums_dtype;              // float32 or bfloat16
  HeadRows<void> column_sums;           // [batch, query_heads, groups, keys]
  int32_t query_group;
  int64_t groups;
};

struct ColumnSparseAttentionParams {
  AttentionParams attention;
  ColumnListsParams columns;
  HeadRows<const void> rest_out;  // data null: nothing to merge
  HeadRows<const float> rest_lse;
};

// result = merge(a, b), or rest_of(a, b).
struct CombineAttentionParams {
  DType dtype;
  HeadRows<const void> a_out, b_out;
  HeadRows<const float> a_lse, b_lse;
  HeadRows<void> out;
  HeadRows<float> lse;
  int64_t batch, heads, queries;
  int32_t head_dim;
};

}  // namespace chipmunk
