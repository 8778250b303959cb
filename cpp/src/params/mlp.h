// Checked, plain data for the MLP ops. Last dimensions are contiguous.
#pragma once

#include <cstdint>

#include "chipmunk_kernels/mlp.h"
#include "params/columns.h"
#include "params/view.h"

namespace chipmunk {

struct ColumnSparseFc1Params {
  DType dtype;
  Activation activation;
  View<const void, 2> x;   // [batch, tokens] of [channels]
  View<const void, 1> w1;  // [hidden or 2 * hidden] of [channels]
  const void* b1;          // [hidden or 2 * hidden] or null
  ColumnListsParams columns;
  View<void, 2> cache;         // [batch, hidden] of [tokens]
  View<void, 3> packed_delta;  // [batch, groups, capacity] of [128]
  int64_t batch, tokens, channels, hidden;

  constexpr bool empty() const {
    return batch == 0 || columns.groups == 0 || columns.capacity == 0;
  }
};

struct ColumnSparseFc2Params {
  DType dtype;
  View<const void, 3> packed_delta;  // [batch, groups, capacity] of [128]
  View<const void, 1> w2t;           // [hidden] of [out_channels]
  ColumnListsParams columns;
  View<void, 2> out;  // [batch, tokens] of [out_channels]
  int64_t batch, tokens, hidden, out_channels;

  constexpr bool empty() const {
    return batch == 0 || columns.groups == 0 || columns.capacity == 0 || out_channels == 0;
  }
};

}  // namespace chipmunk
