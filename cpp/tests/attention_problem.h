// Problems for the attention ops, their results, and how these are compared with the reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "attention_reference.h"
#include "chipmunk_kernels/attention.h"
#include "tensor.h"

namespace testing {

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
