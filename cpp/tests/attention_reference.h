// Every attention op by double loops over float64, its one C++ reference, and its tolerances.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

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

}  // namespace testing
