// Checked, plain data for the MLP ops. Strides are in elements; last dimensions are contiguous.
#pragma once

#include <cstdint>

#include "chipmunk_kernels/mlp.h"
#include "params/columns.h"

namespace chipmunk {

struct ColumnSparseFc1Params {
  DType dtype;
  Activation activation;
  const void* x;  // [batch, tokens, channels]
  int64_t x_batch_stride, x_row_stride;
  const void* w1;  // [hidden or 2 * hidden, channels]
  int64_t w1_row_stride;
  const void* b1;  // [hidden or 2 * hidden] or null
  ColumnListsParams columns;
  void* cache;  // [batch, hidden, tokens]
  int64_t cache_batch_stride, cache_row_stride;
  void* packed_delta;  // [batch, groups, capacity, 128]
  int64_t delta_batch_stride, delta_group_stride, delta_row_stride;
  int64_t batch, tokens, channels, hidden;
};

struct ColumnSparseFc2Params {
  DType dtype;
  const void* packed_delta;  // [batch, groups, capacity, 128]
  int64_t delta_batch_stride, delta_group_stride, delta_row_stride;
  const void* w2t;  // [hidden, out_channels]
  int64_t w2t_row_stride;
  ColumnListsParams columns;
  void* out;  // [batch, tokens, out_channels]
  int64_t out_batch_stride, out_row_stride;
  int64_t batch, tokens, hidden, out_channels;
};

}  // namespace chipmunk
