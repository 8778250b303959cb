// Checked, plain data for the column ops. Strides are in elements.
#pragma once

#include <cstdint>

#include "chipmunk_kernels/tensor.h"

namespace chipmunk {

// Column lists with their leading dimensions flattened to [batch, heads]; `heads` is 1 for the MLP.
struct ColumnListsParams {
  int32_t* indices;
  int64_t indices_batch_stride, indices_head_stride, indices_group_stride;
  int32_t* counts;
  int64_t counts_batch_stride, counts_head_stride, counts_group_stride;
  int64_t groups;
  int64_t capacity;
  int32_t query_group;

  constexpr const int32_t* list(int64_t batch, int64_t head, int64_t group) const {
    return indices + batch * indices_batch_stride + head * indices_head_stride +
           group * indices_group_stride;
  }
  constexpr int32_t count(int64_t batch, int64_t head, int64_t group) const {
    return counts[batch * counts_batch_stride + head * counts_head_stride +
                  group * counts_group_stride];
  }
};

// Rows [*lead, groups] flattened: row i of a tensor whose leading dimensions collapse to one
// stride, or do not; `shape` and `strides` then give the position of a row.
struct RowsParams {
  void* data;
  int32_t rank;               // of the leading dimensions, 0..kMaxRank-1
  int64_t shape[kMaxRank];    // leading dimensions only
  int64_t strides[kMaxRank];  // in elements, of the leading dimensions
  int64_t last_stride;        // of the last dimension; 1 where there is none

  constexpr int64_t rows() const {
    int64_t n = 1;
    for (int32_t i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  // Offset in elements of row `row`, counted in row-major order over the leading dimensions.
  constexpr int64_t offset(int64_t row) const {
    int64_t offset = 0;
    for (int32_t i = rank - 1; i >= 0; --i) {
      offset += row % shape[i] * strides[i];
      row /= shape[i];
    }
    return offset;
  }
};

struct SelectColumnsParams {
  RowsParams scores;  // [rows] x [n]
  DType scores_dtype;
  RowsParams always;  // bool, broadcast to scores; data null where not given
  int64_t n;
  int64_t count;  // -1: by mass
  double mass;
  int64_t min_count, max_count;  // max_count <= capacity
  double random_fraction;
  uint64_t seed;
  RowsParams indices;  // int32 [rows] x [capacity]
  RowsParams counts;   // int32 [rows]
  int64_t capacity;
};

// Between lists and a mask, either way.
struct ColumnsMaskParams {
  RowsParams mask;     // bool [rows] x [n], last dimension of any stride
  RowsParams indices;  // int32 [rows] x [capacity]
  RowsParams counts;   // int32 [rows]
  int64_t n;
  int64_t capacity;
};

}  // namespace chipmunk
