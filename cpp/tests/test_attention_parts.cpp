// Column sums, and the softmax algebra of parts, against double loops.
#include <algorithm>
#include <string>

#include "attention_problem.h"
#include "testing.h"

namespace {

using chipmunk::Context;
using testing::close;
using testing::column_sums;
using testing::DType;
using testing::kInf;
using testing::kNan;
using testing::Layout;
using testing::Part;
using testing::Problem;
using testing::Shape;
using testing::Sums;
using testing::Tensor;
using testing::wrong_sums;

constexpr Shape kShapes[] = {
    {1, 2, 1, 200, 150, 64, 192}, {2, 3, 3, 65, 70, 40, 64},   {1, 2, 2, 300, 129, 128, 256},
    {2, 2, 1, 1, 1, 8, 7},        {1, 1, 1, 450, 65, 96, 400},
};

bool close_parts(const Part& got, const Part& expected, double tolerance) {
  for (int64_t i = 0; i < expected.lse.view().numel(); ++i) {
    const double lse = expected.lse.get_flat(i);
    if (!close(got.lse.get_flat(i), lse, testing::lse_tolerance(lse))) return false;
  }
  for (int64_t i = 0; i < expected.out.view().numel(); ++i) {
    if (!close(got.out.get_flat(i), expected.out.get_flat(i), tolerance)) return false;
  }
  return true;
}

// For `count` roundings to the dtype of numbers below 4, and float32 arithmetic.
double roundings(int count, DType dtype) { return count * testing::half_ulp(4.0, dtype) + 2e-5; }

void sums(testing::Tests& tests) {
  tests.add("column sums relative to the exact lse and to a given one", [&] {
    std::mt19937 random(1);
    for (const DType dtype : testing::kFloatTypes) {
      for (const Shape& s : kShapes) {
        for (const Layout layout : testing::kLayouts) {
          const Problem problem(s, dtype, layout, random);
          const std::string name = std::string(chipmunk::name_of(dtype)) + " keys " +
                                   std::to_string(s.keys) + " layout " +
                                   std::to_string(static_cast<int>(layout));
          Part plain(dtype, s.batch, s.query_heads, s.queries, s.head_dim, layout);
          chipmunk::dense_attention(problem.q, problem.k, problem.v, nullptr, problem.scale,
                                    plain.part(), Context{});

          const Sums exact = column_sums(problem, s, nullptr, DType::kFloat32, layout);
          tests.check(wrong_sums(problem, s.query_group, nullptr, exact.sums) == 0,
                      "exact, " + name);
          tests.check(close_parts(exact.part, plain, roundings(2, dtype)),
                      "attention, exact, " + name);

          Part given(dtype, s.batch, s.query_heads, s.queries, s.head_dim, layout);
          given.lse.fill_normal(random, 3.0);
          given.lse.set({0, 0, 0}, kInf);
          if (s.queries > 2) given.lse.set({0, 0, s.queries - 1}, -kInf);
          for (const DType sums_dtype : {DType::kFloat32, DType::kBFloat16}) {
            const Sums got = column_sums(problem, s, &given.lse, sums_dtype, layout);
            tests.check(wrong_sums(problem, s.query_group, &given.lse, got.sums) == 0,
                        "given, " + name);
            tests.check(got.part.out.same_bits(plain.out) && got.part.lse.same_bits(plain.lse),
                        "attention has dense_attention's bits, given, " + name);
          }
        }
      }
    }
  });
  tests.add("each group's exact sums add up to its rows", [&] {
    std::mt19937 random(2);
    const Shape s{1, 1, 1, 300, 1000, 64, 192};
    const Problem problem(s, DType::kFloat32, Layout::kContiguous, random);
    const Sums got = column_sums(problem, s, nullptr, DType::kFloat32);
    for (int64_t g = 0; g < 2; ++g) {
      double total = 0.0;
      for (int64_t j = 0; j < s.keys; ++j) total += got.sums.get({0, 0, g, j});
      tests.check(close(total, g == 0 ? 192.0 : 108.0, 1e-4), std::to_string(total));
    }
  });
  tests.add("large scores keep the digits of the difference", [&] {
    std::mt19937 random(3);
    const Shape s{1, 1, 1, 40, 90, 64, 64};
    Problem problem(s, DType::kFloat32, Layout::kContiguous, random);
    // A dot product common to all columns, exact in float32: scores near 4096.
    for (int64_t i = 0; i < s.queries; ++i) problem.q.set({0, 0, i, 0}, 64.0);
    for (int64_t j = 0; j < s.keys; ++j) problem.k.set({0, 0, j, 0}, 512.0);
    const Sums exact = column_sums(problem, s, nullptr, DType::kFloat32);
    tests.check(wrong_sums(problem, s.query_group, nullptr, exact.sums) == 0, "exact");
    const Sums given = column_sums(problem, s, &exact.part.lse, DType::kFloat32);
    tests.check(wrong_sums(problem, s.query_group, &exact.part.lse, given.sums) == 0, "given");
  });
  tests.add("NaN and infinite rows: which sums they reach", [&] {
    std::mt19937 random(4);
    const Shape s{1, 1, 1, 128, 70, 16, 64};
    Problem problem(s, DType::kFloat32, Layout::kContiguous, random);
    problem.q.set({0, 0, 100, 3}, kNan);  // group 1
    for (const bool is_exact : {true, false}) {
      Tensor reference(DType::kFloat32, {1, 1, 128});
      const Sums got = column_sums(problem, s, is_exact ? nullptr : &reference, DType::kFloat32);
      tests.check(std::isfinite(got.sums.get({0, 0, 0, 69})), "group without NaN");
      tests.check(std::isnan(got.sums.get({0, 0, 1, 69})), "group with NaN");
    }
    // Scores of inf: lse inf, so the row does not count; out is NaN.
    problem.q.set({0, 0, 100, 3}, 0.0);
    problem.q.fill(1.0);
    for (int64_t d = 0; d < 16; ++d) problem.q.set({0, 0, 5, d}, d == 0 ? kInf : 0.0);
    for (int64_t j = 0; j < s.keys; ++j) problem.k.set({0, 0, j, 0}, 1.0);
    const Sums got = column_sums(problem, s, nullptr, DType::kFloat32);
    tests.check(wrong_sums(problem, s.query_group, nullptr, got.sums) == 0,
                "an lse of inf counts 0");
    tests.check(got.part.lse.get({0, 0, 5}) == kInf, "lse");
    tests.check(std::isnan(got.part.out.get({0, 0, 5, 1})), "out");
  });
  tests.add("no keys, no queries", [&] {
    std::mt19937 random(5);
    for (const Shape& s : {Shape{1, 1, 1, 5, 0, 16, 64}, Shape{1, 1, 1, 0, 5, 16, 64}}) {
      const Problem problem(s, DType::kFloat16, Layout::kContiguous, random);
      const Sums got = column_sums(problem, s, nullptr, DType::kFloat32);
      tests.check(got.sums.view().numel() == 0, "no sums");
      if (s.queries > 0) tests.check(got.part.lse.get({0, 0, 4}) == -kInf, "lse");
    }
  });
}

// Attention over the columns of either half of `problem`'s keys, or of all.
Part over_keys(const Problem& problem, const Shape& s, int64_t begin, int64_t end) {
  Part part(problem.q.dtype(), s.batch, s.query_heads, s.queries, s.head_dim);
  chipmunk::dense_attention(problem.q, problem.k.slice(2, begin, end),
                            problem.v.slice(2, begin, end), nullptr, problem.scale, part.part(),
                            Context{});
  return part;
}

void algebra(testing::Tests& tests) {
  tests.add("halves merge to the whole; the rest of one half is the other", [&] {
    std::mt19937 random(6);
    for (const DType dtype : testing::kFloatTypes) {
      for (const Shape& s : kShapes) {
        if (s.keys < 2) continue;
        const Problem problem(s, dtype, Layout::kContiguous, random);
        const Part whole = over_keys(problem, s, 0, s.keys);
        const Part a = over_keys(problem, s, 0, s.keys / 2);
        const Part b = over_keys(problem, s, s.keys / 2, s.keys);
        for (const Layout layout : testing::kLayouts) {
          Part got(dtype, s.batch, s.query_heads, s.queries, s.head_dim, layout);
          chipmunk::merge_attention(a.part(), b.part(), got.part(), Context{});
          tests.check(close_parts(got, whole, roundings(4, dtype)), "merge");
          chipmunk::rest_of_attention(whole.part(), a.part(), got.part(), Context{});
          // Here w / (1 - w) is below 10: it multiplies the rounding of both outputs.
          const double noise = 10 * testing::half_ulp(2.0, dtype) + 1e-4;
          bool near = true;
          for (int64_t i = 0; i < b.out.view().numel(); ++i) {
            near = near && close(got.out.get_flat(i), b.out.get_flat(i), noise);
          }
          for (int64_t i = 0; i < b.lse.view().numel(); ++i) {
            near = near && close(got.lse.get_flat(i), b.lse.get_flat(i), 1e-4);
          }
          tests.check(near, std::string("rest, ") + chipmunk::name_of(dtype));
          Part back(dtype, s.batch, s.query_heads, s.queries, s.head_dim);
          chipmunk::merge_attention(got.part(), a.part(), back.part(), Context{});
          tests.check(close_parts(back, whole, roundings(4, dtype)), "and back");
        }
      }
    }
  });
  tests.add("row by row, every kind of lse", [&] {
    for (const DType dtype : testing::kFloatTypes) {
      for (const int64_t head_dim : {1, 7, 16, 40}) {
        const double lses[] = {-kInf, kInf, kNan, 0.0, 1.0, -3.0, 100.0, 99.0, -1000.0, 1000.0};
        const int64_t n = std::size(lses) * std::size(lses);
        std::mt19937 random(7);
        Part a(dtype, 1, 1, n, head_dim), b(dtype, 1, 1, n, head_dim),
            got(dtype, 1, 1, n, head_dim);
        a.out.fill_normal(random);
        b.out.fill_normal(random);
        for (int64_t i = 0; i < n; ++i) {
          a.lse.set({0, 0, i}, lses[i / std::ssize(lses)]);
          b.lse.set({0, 0, i}, lses[i % std::ssize(lses)]);
          for (int64_t d = 0; d < head_dim; ++d) {  // an empty part is not looked at
            if (a.lse.get({0, 0, i}) == -kInf) a.out.set({0, 0, i, d}, kNan);
            if (b.lse.get({0, 0, i}) == -kInf) b.out.set({0, 0, i, d}, kNan);
          }
        }
        chipmunk::merge_attention(a.part(), b.part(), got.part(), Context{});
        int64_t wrong = 0;
        for (int64_t i = 0; i < n; ++i) {
          const testing::ExpectedRow expected =
              testing::expected_merge(a.row(0, 0, i), b.row(0, 0, i));
          wrong += testing::differences(got.row(0, 0, i), expected, dtype);
        }
        tests.check(wrong == 0, std::string("merge ") + chipmunk::name_of(dtype));
      }
    }
  });
  tests.add("rest of: nothing left, next to nothing left, nothing selected", [&] {
    for (const DType dtype : testing::kFloatTypes) {
      const double epsilon = 2 * testing::half_ulp(1.0, dtype);
      // log(1 - left) for shares `left` on both sides of epsilon / 16.
      const double above = std::log1p(-epsilon / 8), below = std::log1p(-epsilon / 32);
      struct Row {
        double whole, selected;
        int expected;  // 0: nothing; 1: whole's out; 2: the difference
      };
      const Row rows[] = {
          {1.0, 1.0, 0},   {1.0, 2.0, 0},   {-kInf, -kInf, 0}, {-kInf, 1.0, 0},
          {1.0, -kInf, 1}, {0.0, below, 1}, {0.0, above, 2},   {5.0, 4.0, 2},
      };
      const int64_t n = std::ssize(rows);
      Part whole(dtype, 1, 1, n, 16), selected(dtype, 1, 1, n, 16), got(dtype, 1, 1, n, 16);
      std::mt19937 random(8);
      whole.out.fill_normal(random);
      selected.out.fill_normal(random);
      for (int64_t i = 0; i < n; ++i) {
        whole.lse.set({0, 0, i}, rows[i].whole);
        selected.lse.set({0, 0, i}, rows[i].selected);
      }
      chipmunk::rest_of_attention(whole.part(), selected.part(), got.part(), Context{});
      for (int64_t i = 0; i < n; ++i) {
        const testing::ExpectedRow row =
            testing::expected_rest(whole.row(0, 0, i), selected.row(0, 0, i), epsilon);
        const double got_lse = got.lse.get({0, 0, i});
        // 1 - w is only as good as the float32 difference of the two: epsilon / 32 is 2^-28.
        if (dtype != DType::kFloat32 || rows[i].whole != 0.0) {
          tests.check(close(got_lse, row.lse, testing::lse_tolerance(row.lse)),
                      std::to_string(got_lse));
        }
        for (int64_t d = 0; d < 16; ++d) {
          const double o = whole.out.get({0, 0, i, d});
          const double expected = row.out[static_cast<size_t>(d)];
          tests.check((expected == 0.0) == (rows[i].expected == 0), "nothing left");
          tests.check((expected == o) == (rows[i].expected == 1), "whole's out");
          tests.check(close(got.out.get({0, 0, i, d}), expected,
                            testing::half_ulp(expected, dtype) * 1.01 +
                                1e-5 * std::fabs(expected - o) + 1e-6),
                      std::to_string(i));
        }
      }
    }
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  sums(tests);
  algebra(tests);
  return tests.run();
}
