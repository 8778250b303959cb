// Attention by double loops over float64, and the tensors that its tests share.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "chipmunk_kernels/attention.h"
#include "tensor.h"

namespace testing {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr DType kFloatTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// The elements of q, k and v as float64, contiguous: double loops over views would take minutes.
struct Values {
  int64_t heads, rows, head_dim;
  std::vector<double> data;
  explicit Values(const Tensor& t)
      : heads(t.size(1)),
        rows(t.size(2)),
        head_dim(t.size(3)),
        data(static_cast<size_t>(t.view().numel())) {
    for (size_t i = 0; i < data.size(); ++i) data[i] = t.get_flat(static_cast<int64_t>(i));
  }
  const double* row(int64_t b, int64_t h, int64_t i) const {
    return data.data() + ((b * heads + h) * rows + i) * head_dim;
  }
};

// One row of attention over some columns, as softmax and logsumexp define it.
struct ExpectedRow {
  std::vector<double> out;  // [head_dim]
  double lse = -kInf;
  double largest_value = 0.0;  // of |v| over the columns: what rounding errors of out scale with
};

struct Expected {
  Values q, k, v;
  double scale;

  double score(int64_t b, int64_t h, int64_t i, int64_t column) const {
    const double* const query = q.row(b, h, i);
    const double* const key = k.row(b, h / (q.heads / k.heads), column);
    double dot = 0.0;
    for (int64_t d = 0; d < q.head_dim; ++d) dot += query[d] * key[d];
    return dot * scale;
  }

  ExpectedRow row(int64_t b, int64_t h, int64_t i, const std::vector<int64_t>& columns) const {
    const size_t head_dim = static_cast<size_t>(q.head_dim);
    ExpectedRow expected{std::vector<double>(head_dim, 0.0)};
    std::vector<double> scores;
    double largest = -kInf;
    bool has_nan = false;
    for (const int64_t column : columns) {
      scores.push_back(score(b, h, i, column));
      largest = std::max(largest, scores.back());
      has_nan = has_nan || std::isnan(scores.back());
    }
    if (has_nan || largest == kInf) {
      expected.out.assign(head_dim, kNan);
      expected.lse = has_nan ? kNan : kInf;
      return expected;
    }
    if (largest == -kInf) return expected;
    double total = 0.0;
    for (size_t c = 0; c < columns.size(); ++c) {
      const double weight = std::exp(scores[c] - largest);
      const double* const value = v.row(b, h / (q.heads / v.heads), columns[c]);
      total += weight;
      for (size_t d = 0; d < head_dim; ++d) {
        expected.out[d] += weight * value[d];
        expected.largest_value = std::max(expected.largest_value, std::fabs(value[d]));
      }
    }
    for (double& x : expected.out) x /= total;
    expected.lse = largest + std::log(total);
    return expected;
  }
};

inline std::vector<int64_t> all_columns(int64_t keys) {
  std::vector<int64_t> columns(static_cast<size_t>(keys));
  std::iota(columns.begin(), columns.end(), 0);
  return columns;
}

// The log-sum-exp of two parts together.
inline double expected_merged_lse(double a, double b) {
  const double high = std::max(a, b);
  return high == -kInf ? -kInf : high + std::log(std::exp(a - high) + std::exp(b - high));
}

// NaN agrees with NaN, inf with inf; else within the tolerance.
inline bool close(double got, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  return std::fabs(got - expected) <= tolerance;
}

// Half a unit in the last place of the dtype at `x`.
inline double half_ulp(double x, DType dtype) {
  const double epsilon = dtype == DType::kFloat32    ? 0x1p-23
                         : dtype == DType::kBFloat16 ? 0x1p-7
                                                     : 0x1p-10;
  const double smallest = dtype == DType::kFloat16 ? 0x1p-14 : 0x1p-126;
  return epsilon * std::max(std::fabs(x), smallest) / 2;
}

// Rounding of the result, and float32 arithmetic over some hundred terms of size `largest`.
inline double out_tolerance(double expected, double largest, DType dtype) {
  return half_ulp(expected, dtype) * 1.01 + 4e-6 * largest;
}

inline double lse_tolerance(double expected) { return 2e-6 * (4.0 + std::fabs(expected)); }

// [batch, heads, rows, head_dim] with the memory order of a layout.
enum class Layout { kContiguous, kRowsBeforeHeads, kPadded };
inline constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kRowsBeforeHeads,
                                      Layout::kPadded};

inline Tensor make_rows(DType dtype, int64_t batch, int64_t heads, int64_t rows, int64_t head_dim,
                        Layout layout) {
  switch (layout) {
    case Layout::kRowsBeforeHeads:
      return Tensor(dtype, {batch, rows, heads, head_dim}).transposed(1, 2);
    case Layout::kPadded:  // every dimension a slice of a larger one; rows not aligned
      return Tensor(dtype, {batch + 1, heads + 1, 2 * rows + 1, head_dim + 3})
          .slice(0, 1, batch + 1)
          .slice(1, 0, heads)
          .slice(2, 0, 2 * rows, 2)
          .slice(3, 1, head_dim + 1);
    default:
      return Tensor(dtype, {batch, heads, rows, head_dim});
  }
}

inline Tensor make_lse(int64_t batch, int64_t heads, int64_t rows, Layout layout) {
  if (layout == Layout::kContiguous) return Tensor(DType::kFloat32, {batch, heads, rows});
  return Tensor(DType::kFloat32, {rows, batch, heads}).transposed(0, 1).transposed(1, 2);
}

struct Part {
  Tensor out, lse;
  Part(DType dtype, int64_t batch, int64_t heads, int64_t rows, int64_t head_dim,
       Layout layout = Layout::kContiguous)
      : out(make_rows(dtype, batch, heads, rows, head_dim, layout)),
        lse(make_lse(batch, heads, rows, layout)) {
    out.fill(123.0);
    lse.fill(123.0);
  }
  chipmunk::AttentionPart part() const { return {out.view(), lse.view()}; }
};

// Column lists for groups of rows of every head, entries past the counts INT_MAX.
struct Lists {
  Tensor indices, counts;
  int32_t query_group;
  Lists(int64_t batch, int64_t heads, int64_t queries, int32_t group_rows, int64_t capacity)
      : indices(DType::kInt32, {batch, heads, (queries + group_rows - 1) / group_rows, capacity}),
        counts(DType::kInt32, {batch, heads, (queries + group_rows - 1) / group_rows}),
        query_group(group_rows) {
    indices.fill(std::numeric_limits<int32_t>::max());
  }
  chipmunk::ColumnLists lists() const { return {indices.view(), counts.view(), query_group}; }
  int64_t groups() const { return counts.size(2); }
  void set(int64_t b, int64_t h, int64_t g, const std::vector<int64_t>& columns) const {
    for (size_t p = 0; p < columns.size(); ++p) {
      indices.set({b, h, g, static_cast<int64_t>(p)}, static_cast<double>(columns[p]));
    }
    counts.set({b, h, g}, static_cast<double>(columns.size()));
  }
  std::vector<int64_t> get(int64_t b, int64_t h, int64_t g) const {
    std::vector<int64_t> columns;
    for (int64_t p = 0; p < counts.get({b, h, g}); ++p) {
      columns.push_back(static_cast<int64_t>(indices.get({b, h, g, p})));
    }
    return columns;
  }
  // Lists of every length from none to all, in turn.
  void fill_random(std::mt19937& random, int64_t keys) const {
    int turn = 0;
    for (int64_t b = 0; b < counts.size(0); ++b) {
      for (int64_t h = 0; h < counts.size(1); ++h) {
        for (int64_t g = 0; g < groups(); ++g) {
          int64_t count = static_cast<int64_t>(random() % static_cast<uint64_t>(keys + 1));
          if (turn % 5 == 0) count = std::min<int64_t>(keys, 1);
          if (turn % 5 == 1) count = 0;
          if (turn % 5 == 2) count = keys;
          ++turn;
          std::vector<int64_t> columns = all_columns(keys);
          std::shuffle(columns.begin(), columns.end(), random);
          columns.resize(static_cast<size_t>(count));
          std::sort(columns.begin(), columns.end());
          set(b, h, g, columns);
        }
      }
    }
  }
};

}  // namespace testing
