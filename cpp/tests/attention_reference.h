// Every attention op by double loops over float64, its one C++ reference, and the tensors and
// comparisons that the tests share.
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
inline constexpr double kExtreme =
    0x1p24 * 0.693147180559945;  // the library's, as a natural logarithm
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

// One element of the column sums.
struct ExpectedSum {
  double sum = 0.0;
  double rounding = 0.0;  // of float32 arithmetic
};

inline std::vector<int64_t> all_columns(int64_t keys) {
  std::vector<int64_t> columns(static_cast<size_t>(keys));
  std::iota(columns.begin(), columns.end(), 0);
  return columns;
}

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

  // Scores relative to their maximum: beside a large lse, the logarithm of a sum of weights would
  // be lost to rounding.
  struct Softmax {
    std::vector<double> scores;  // [columns]
    double largest = -kInf;
    double total = 0.0;  // of the weights
    double weight(size_t column) const { return std::exp(scores[column] - largest); }
    double lse() const { return std::isinf(largest) ? largest : largest + std::log(total); }
  };

  // NaN for `largest` where a score is NaN.
  Softmax softmax(int64_t b, int64_t h, int64_t i, const std::vector<int64_t>& columns) const {
    Softmax softmax;
    for (const int64_t column : columns) {
      const double s = score(b, h, i, column);
      softmax.scores.push_back(s);
      if (std::isnan(s) || s > softmax.largest) softmax.largest = s;
    }
    if (std::isinf(softmax.largest)) return softmax;
    for (size_t c = 0; c < columns.size(); ++c) softmax.total += softmax.weight(c);
    return softmax;
  }

  ExpectedRow row(int64_t b, int64_t h, int64_t i, const std::vector<int64_t>& columns) const {
    const size_t head_dim = static_cast<size_t>(q.head_dim);
    ExpectedRow expected{std::vector<double>(head_dim, 0.0)};
    const Softmax weights = softmax(b, h, i, columns);
    expected.lse = weights.lse();
    if (std::isnan(expected.lse) || expected.lse == kInf) {
      expected.out.assign(head_dim, kNan);
      return expected;
    }
    if (expected.lse == -kInf) return expected;
    for (size_t c = 0; c < columns.size(); ++c) {
      const double* const value = v.row(b, h / (q.heads / v.heads), columns[c]);
      for (size_t d = 0; d < head_dim; ++d) {
        expected.out[d] += weights.weight(c) * value[d] / weights.total;
        expected.largest_value = std::max(expected.largest_value, std::fabs(value[d]));
      }
    }
    return expected;
  }

  // Sums over the queries [begin, end) of exp(score - reference), for every key; relative to the
  // exact lse where `reference` is null. Rows of an infinite reference do not count.
  std::vector<ExpectedSum> column_sums(int64_t b, int64_t h, int64_t begin, int64_t end,
                                       const Tensor* reference) const {
    const std::vector<int64_t> all = all_columns(k.rows);
    std::vector<ExpectedSum> sums(all.size());
    for (int64_t i = begin; i < end; ++i) {
      const Softmax row = softmax(b, h, i, all);
      const double lse = reference != nullptr ? reference->get({b, h, i}) : row.lse();
      if (std::isinf(lse)) continue;
      for (size_t j = 0; j < all.size(); ++j) {
        const double term =
            reference != nullptr ? std::exp(row.scores[j] - lse) : row.weight(j) / row.total;
        // Rounded are scores and references; extreme ones are subtracted first, and what is left
        // is below 300 or the term is 0 or inf.
        double size = std::max(std::fabs(row.scores[j]), std::fabs(lse));
        if (size >= kExtreme) size = 300.0;
        sums[j].sum += term;
        sums[j].rounding += 4e-7 * (4.0 + size) * term;
      }
    }
    return sums;
  }
};

// The log-sum-exp of two parts together, and their shares in it. An empty part has share 0.
struct ExpectedShares {
  double lse, a, b;
};

inline ExpectedShares expected_shares(double a, double b) {
  if (a == -kInf && b == -kInf) return {-kInf, 0.0, 0.0};
  const double high = std::isnan(a) || a > b ? a : b;
  const double weight_a = a == -kInf ? 0.0 : std::exp(a - high);
  const double weight_b = b == -kInf ? 0.0 : std::exp(b - high);
  const double total = weight_a + weight_b;
  if (high == kInf && !std::isnan(a) && !std::isnan(b)) return {kInf, weight_a, weight_b};
  return {high + std::log(total), weight_a / total, weight_b / total};
}

// The parts `a` and `b` as one. An empty part is not looked at.
inline ExpectedRow expected_merge(const ExpectedRow& a, const ExpectedRow& b) {
  const ExpectedShares shares = expected_shares(a.lse, b.lse);
  ExpectedRow merged{std::vector<double>(a.out.size(), 0.0), shares.lse,
                     std::max(a.largest_value, b.largest_value)};
  for (size_t d = 0; d < merged.out.size(); ++d) {
    if (a.lse != -kInf) merged.out[d] += shares.a * a.out[d];
    if (b.lse != -kInf) merged.out[d] += shares.b * b.out[d];
  }
  return merged;
}

// What `selected` leaves of `whole`; `epsilon` is that of out's dtype.
inline ExpectedRow expected_rest(const ExpectedRow& whole, const ExpectedRow& selected,
                                 double epsilon) {
  ExpectedRow rest = whole;
  if (selected.lse == -kInf && whole.lse != -kInf) return rest;
  const double left = whole.lse == -kInf ? 0.0 : -std::expm1(selected.lse - whole.lse);
  if (left <= 0.0) return {std::vector<double>(whole.out.size(), 0.0)};
  rest.lse = whole.lse + std::log(left);
  if (left < epsilon / 16) return rest;
  for (size_t d = 0; d < rest.out.size(); ++d) {
    rest.out[d] += (whole.out[d] - selected.out[d]) * (1.0 - left) / left;
  }
  return rest;
}

// NaN agrees with NaN, inf with inf and with what float32 rounds to it; else within the tolerance.
inline bool close(double got, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(got);
  const float rounded = static_cast<float>(expected);
  if (std::isinf(rounded)) return got == rounded;
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

struct Shape {
  int64_t batch, query_heads, kv_heads, queries, keys, head_dim;
  int32_t query_group;
  int64_t groups() const { return (queries + query_group - 1) / query_group; }
};

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

// Normal numbers; those of q and k with standard deviation `spread`.
struct Problem {
  Tensor q, k, v;
  float scale;
  Problem(const Shape& s, DType dtype, Layout layout, std::mt19937& random, double spread = 1.0)
      : q(make_rows(dtype, s.batch, s.query_heads, s.queries, s.head_dim, layout)),
        k(make_rows(dtype, s.batch, s.kv_heads, s.keys, s.head_dim, layout)),
        v(make_rows(dtype, s.batch, s.kv_heads, s.keys, s.head_dim, layout)),
        scale(1.0f / std::sqrt(static_cast<float>(s.head_dim))) {
    q.fill_normal(random, spread);
    k.fill_normal(random, spread);
    v.fill_normal(random);
  }
  Expected expected() const { return {Values(q), Values(k), Values(v), scale}; }
};

struct Part {
  Tensor out, lse;
  Part(const Shape& s, DType dtype, Layout layout = Layout::kContiguous)
      : Part(dtype, s.batch, s.query_heads, s.queries, s.head_dim, layout) {}
  Part(DType dtype, int64_t batch, int64_t heads, int64_t rows, int64_t head_dim,
       Layout layout = Layout::kContiguous)
      : out(make_rows(dtype, batch, heads, rows, head_dim, layout)),
        lse(make_lse(batch, heads, rows, layout)) {
    out.fill(123.0);
    lse.fill(123.0);
  }
  chipmunk::AttentionPart part() const { return {out.view(), lse.view()}; }
  ExpectedRow row(int64_t b, int64_t h, int64_t i) const {
    ExpectedRow row{{}, lse.get({b, h, i})};
    for (int64_t d = 0; d < out.size(3); ++d) {
      row.out.push_back(out.get({b, h, i, d}));
      row.largest_value = std::max(row.largest_value, std::fabs(row.out.back()));
    }
    return row;
  }
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

// How many of a row's numbers differ from the expected ones; 0 is a pass. `further`: a tolerance
// of out beyond that of attention.
inline int64_t differences(const ExpectedRow& got, const ExpectedRow& expected, DType dtype,
                           double further = 0.0) {
  int64_t wrong = !close(got.lse, expected.lse, lse_tolerance(expected.lse));
  for (size_t d = 0; d < expected.out.size(); ++d) {
    wrong += !close(got.out[d], expected.out[d],
                    out_tolerance(expected.out[d], expected.largest_value, dtype) + further);
  }
  return wrong;
}

// The same over all rows of `got`: attention over columns_of(b, h, i), merged with `rest` if given.
template <class Columns>
int64_t differences(const Problem& problem, const Part& got, const Columns& columns_of,
                    const Part* rest = nullptr) {
  int64_t wrong = 0;
  const Tensor& q = problem.q;
  const Expected attention = problem.expected();
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(1); ++h) {
      for (int64_t i = 0; i < q.size(2); ++i) {
        ExpectedRow row = attention.row(b, h, i, columns_of(b, h, i));
        double further = 0.0;
        if (rest != nullptr) {
          // Shares are taken from a rounded lse; extreme ones are not rounded before.
          const double size = std::fabs(row.lse);
          row = expected_merge(row, rest->row(b, h, i));
          if (size < kExtreme) further = 0x1p-23 * size * row.largest_value;
        }
        wrong += differences(got.row(b, h, i), row, q.dtype(), further);
      }
    }
  }
  return wrong;
}

// Entries of `got` [batch, heads, groups, keys] that differ from the sums relative to `reference`,
// or to the exact lse if null.
inline int64_t wrong_sums(const Problem& problem, int64_t query_group, const Tensor* reference,
                          const Tensor& got) {
  const Expected attention = problem.expected();
  int64_t wrong = 0;
  for (int64_t b = 0; b < got.size(0); ++b) {
    for (int64_t h = 0; h < got.size(1); ++h) {
      for (int64_t g = 0; g < got.size(2); ++g) {
        const int64_t end = std::min(problem.q.size(2), (g + 1) * query_group);
        const std::vector<ExpectedSum> sums =
            attention.column_sums(b, h, g * query_group, end, reference);
        for (int64_t j = 0; j < got.size(3); ++j) {
          const auto [sum, rounding] = sums[static_cast<size_t>(j)];
          // Below 2^-126 exp is 0.
          const double tolerance = half_ulp(sum, got.dtype()) * 1.01 + rounding + 1e-36;
          wrong += !close(got.get({b, h, g, j}), sum, tolerance);
        }
      }
    }
  }
  return wrong;
}

struct Sums {
  Part part;
  Tensor sums;  // [batch, query_heads, groups, keys]
};

inline Part dense(const Problem& problem, Part result) {
  chipmunk::dense_attention(problem.q, problem.k, problem.v, nullptr, problem.scale, result.part(),
                            chipmunk::Context{});
  return result;
}

inline Part column_sparse(const Problem& problem, const Lists& lists, const Part* rest,
                          Part result) {
  const chipmunk::AttentionPart rest_part = rest != nullptr ? rest->part() : result.part();
  chipmunk::column_sparse_attention(problem.q, problem.k, problem.v, lists.lists(),
                                    rest != nullptr ? &rest_part : nullptr, nullptr, problem.scale,
                                    result.part(), chipmunk::Context{});
  return result;
}

inline Sums column_sums(const Problem& problem, const Shape& s, const Tensor* reference,
                        DType sums_dtype, Layout layout = Layout::kContiguous) {
  Sums got{Part(s, problem.q.dtype(), layout),
           make_rows(sums_dtype, s.batch, s.query_heads, s.groups(), s.keys, layout)};
  got.sums.fill(123.0);
  chipmunk::dense_attention_column_sums(
      problem.q, problem.k, problem.v, reference != nullptr ? &reference->view() : nullptr, nullptr,
      nullptr, s.query_group, problem.scale, got.part.part(), got.sums, chipmunk::Context{});
  return got;
}

}  // namespace testing
