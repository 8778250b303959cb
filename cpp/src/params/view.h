// Strided views without shapes: how params point into tensors. Strides are in elements, 64-bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "chipmunk_kernels/tensor.h"

namespace chipmunk {

// The first kRank dimensions of a tensor; those after them are contiguous, or `data` is typed and
// kRank is all. T is void where the dtype is known at run time only.
template <class T, int kRank>
struct View {
  T* data = nullptr;
  int64_t strides[kRank]{};

  // In elements. Fewer indices than kRank address the first dimensions.
  template <class... Index>
  constexpr int64_t offset(Index... index) const {
    static_assert(sizeof...(Index) <= kRank);
    int64_t offset = 0;
    int dim = 0;
    ((offset += static_cast<int64_t>(index) * strides[dim++]), ...);
    return offset;
  }
};

template <class T, int kRank>
constexpr View<T, kRank> view_of(const TensorView& t) {
  View<T, kRank> view{.data = static_cast<T*>(t.data)};
  std::copy_n(t.strides.begin(), kRank, view.strides);
  return view;
}

// Address of the element that lies `offset` elements of `dtype` behind `data`; T is void or const
// void.
template <class T>
T* element(T* data, DType dtype, int64_t offset) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(data) + offset * size_of(dtype);
}

// The leading dimensions of a tensor flattened to rows, whether or not one stride walks them.
struct Rows {
  void* data = nullptr;
  int32_t rank = 0;             // of the leading dimensions, 0..kMaxRank
  int64_t shape[kMaxRank]{};    // of the leading dimensions
  int64_t strides[kMaxRank]{};  // of the leading dimensions
  int64_t last_stride = 1;      // of the last dimension; 1 where there is none

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

// `t` [*lead, last] as rows; every dimension leads where `has_last` is false.
inline Rows rows_of(const TensorView& t, bool has_last = true) {
  Rows rows;
  rows.data = t.data;
  rows.rank = has_last ? t.rank - 1 : t.rank;
  std::copy_n(t.shape.begin(), rows.rank, rows.shape);
  std::copy_n(t.strides.begin(), rows.rank, rows.strides);
  if (has_last) rows.last_stride = t.strides[t.rank - 1];
  return rows;
}

// The same rows with as few leading dimensions as their strides allow.
inline Rows collapsed(const Rows& rows) {
  Rows out = rows;
  out.rank = 0;
  for (int32_t i = 0; i < rows.rank; ++i) {
    if (rows.shape[i] == 1) continue;
    const int32_t last = out.rank - 1;
    if (out.rank > 0 && out.strides[last] == rows.shape[i] * rows.strides[i]) {
      out.shape[last] *= rows.shape[i];
      out.strides[last] = rows.strides[i];
    } else {
      out.shape[out.rank] = rows.shape[i];
      out.strides[out.rank++] = rows.strides[i];
    }
  }
  return out;
}

}  // namespace chipmunk
