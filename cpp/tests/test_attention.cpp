// Dense and column-sparse attention against double loops.
#include <algorithm>
#include <string>

#include "attention_problem.h"
#include "testing.h"

namespace {

using chipmunk::Context;
using testing::column_sparse;
using testing::dense;
using testing::differences;
using testing::DType;
using testing::kInf;
using testing::kNan;
using testing::Layout;
using testing::Lists;
using testing::Part;
using testing::Problem;
using testing::Shape;
using testing::Tensor;

// Sizes around the tiles (192 queries, 64 columns), the vectors and the model's own.
constexpr Shape kShapes[] = {
    {1, 2, 1, 200, 150, 64, 192}, {2, 3, 3, 65, 70, 40, 64},    {1, 4, 2, 300, 129, 256, 256},
    {2, 2, 1, 1, 1, 8, 7},        {1, 1, 1, 193, 333, 96, 192}, {1, 2, 2, 50, 64, 128, 16},
    {1, 1, 1, 17, 200, 72, 1},    {1, 1, 1, 500, 65, 64, 400},
};

std::string text(const Shape& s, DType dtype, Layout layout) {
  return std::string(chipmunk::name_of(dtype)) + " [" + std::to_string(s.batch) + ", " +
         std::to_string(s.query_heads) + "/" + std::to_string(s.kv_heads) + ", " +
         std::to_string(s.queries) + "x" + std::to_string(s.keys) + ", " +
         std::to_string(s.head_dim) + "] layout " + std::to_string(static_cast<int>(layout));
}

template <class Body>
void for_each_problem(const Body& body) {
  std::mt19937 random(7);
  for (const DType dtype : testing::kFloatTypes) {
    for (const Shape& shape : kShapes) {
      for (const Layout layout : testing::kLayouts) {
        body(shape, dtype, layout, random);
      }
    }
  }
}

// A rest such as an earlier step left: any values, some rows empty with NaN for out.
Part random_rest(const Shape& s, DType dtype, Layout layout, std::mt19937& random) {
  Part rest = Part(s, dtype, layout);
  rest.out.fill_normal(random);
  rest.lse.fill_normal(random, 4.0);
  for (int64_t i = 0; i < s.queries; i += 3) {
    rest.lse.set({0, 0, i}, -kInf);
    for (int64_t d = 0; d < s.head_dim; ++d) rest.out.set({0, 0, i, d}, kNan);
  }
  return rest;
}

void values(testing::Tests& tests) {
  tests.add("dense attention", [&] {
    for_each_problem([&](const Shape& s, DType dtype, Layout layout, std::mt19937& random) {
      const Problem problem(s, dtype, layout, random, 1.5);
      const Part got = dense(problem, Part(s, dtype, layout));
      const std::vector<int64_t> all = testing::all_columns(s.keys);
      tests.check(differences(problem, got, [&](int64_t, int64_t, int64_t) { return all; }) == 0,
                  text(s, dtype, layout));
    });
  });
  tests.add("column-sparse attention, alone and merged with a rest", [&] {
    for_each_problem([&](const Shape& s, DType dtype, Layout layout, std::mt19937& random) {
      const Problem problem(s, dtype, layout, random, 1.5);
      const Lists lists(s.batch, s.query_heads, s.queries, s.query_group, s.keys + 3);
      lists.fill_random(random, s.keys);
      const auto columns_of = [&](int64_t b, int64_t h, int64_t i) {
        return lists.get(b, h, i / s.query_group);
      };
      const Part alone = column_sparse(problem, lists, nullptr, Part(s, dtype, layout));
      tests.check(differences(problem, alone, columns_of) == 0, text(s, dtype, layout));

      const Part rest = random_rest(s, dtype, layout, random);
      const Part merged = column_sparse(problem, lists, &rest, Part(s, dtype, layout));
      tests.check(differences(problem, merged, columns_of, &rest) == 0,
                  "rest, " + text(s, dtype, layout));

      // In place: the same bits as with memory of its own.
      const Part in_place = column_sparse(problem, lists, &rest, rest);
      tests.check(in_place.out.same_bits(merged.out) && in_place.lse.same_bits(merged.lse),
                  "in place, " + text(s, dtype, layout));
    });
  });
}

constexpr Shape kSmall{1, 2, 1, 130, 100, 64, 64};

void lists(testing::Tests& tests) {
  tests.add("all columns in a list give dense attention to the bit", [&] {
    std::mt19937 random(1);
    for (const DType dtype : testing::kFloatTypes) {
      const Problem problem(kSmall, dtype, Layout::kContiguous, random);
      const Lists lists(1, 2, 130, 192, 100);
      for (int64_t h = 0; h < 2; ++h) lists.set(0, h, 0, testing::all_columns(100));
      const Part sparse = column_sparse(problem, lists, nullptr, Part(kSmall, dtype));
      const Part whole = dense(problem, Part(kSmall, dtype));
      tests.check(sparse.out.same_bits(whole.out) && sparse.lse.same_bits(whole.lse),
                  chipmunk::name_of(dtype));
    }
  });
  tests.add("no columns: zeros and -inf, or the rest's own bits", [&] {
    std::mt19937 random(2);
    for (const DType dtype : testing::kFloatTypes) {
      const Problem problem(kSmall, dtype, Layout::kContiguous, random);
      const Lists lists(1, 2, 130, 64, 0);
      const Part alone = column_sparse(problem, lists, nullptr, Part(kSmall, dtype));
      bool empty = true;
      for (int64_t i = 0; i < alone.lse.view().numel(); ++i) {
        empty = empty && alone.lse.get_flat(i) == -kInf;
      }
      for (int64_t i = 0; i < alone.out.view().numel(); ++i) {
        empty = empty && alone.out.get_flat(i) == 0.0;
      }
      tests.check(empty, "alone");
      Part rest = Part(kSmall, dtype);
      rest.out.fill_normal(random);
      rest.lse.fill_normal(random, 50.0);
      const Part merged = column_sparse(problem, lists, &rest, Part(kSmall, dtype));
      tests.check(merged.out.same_bits(rest.out) && merged.lse.same_bits(rest.lse), "rest");
    }
  });
  tests.add("unselected rows are never read, whatever they hold", [&] {
    std::mt19937 random(3);
    for (const DType dtype : testing::kFloatTypes) {
      const Problem problem(kSmall, dtype, Layout::kContiguous, random);
      const Lists lists(1, 2, 130, 64, 100);
      // Group g takes columns g mod 4, g mod 4 + 4, ..; column 99 is nobody's.
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t g = 0; g < lists.groups(); ++g) {
          std::vector<int64_t> columns;
          for (int64_t c = g % 4; c < 99; c += 4) columns.push_back(c);
          lists.set(0, h, g, columns);
        }
      }
      const Part clean = column_sparse(problem, lists, nullptr, Part(kSmall, dtype));
      for (int64_t c = 0; c < 100; ++c) {
        if (c % 4 < lists.groups() && c != 99) continue;
        for (int64_t d = 0; d < 64; ++d) {
          problem.k.set({0, 0, c, d}, kNan);
          problem.v.set({0, 0, c, d}, d % 2 == 0 ? kNan : kInf);
        }
      }
      const Part poisoned = column_sparse(problem, lists, nullptr, Part(kSmall, dtype));
      tests.check(clean.out.same_bits(poisoned.out) && clean.lse.same_bits(poisoned.lse),
                  chipmunk::name_of(dtype));
      // Group 0 alone meets NaN; the others do not.
      for (int64_t d = 0; d < 64; ++d) problem.k.set({0, 0, 4, d}, kNan);
      const Part hit = column_sparse(problem, lists, nullptr, Part(kSmall, dtype));
      for (int64_t i : {0, 63, 64, 129}) {
        tests.check(std::isnan(hit.lse.get({0, 1, i})) == (i < 64), "lse of row");
        tests.check(std::isnan(hit.out.get({0, 1, i, 5})) == (i < 64), "out of row");
      }
    }
  });
  tests.add("strided lists", [&] {
    std::mt19937 random(4);
    const Problem problem(kSmall, DType::kFloat32, Layout::kContiguous, random);
    Lists wide(1, 2, 130, 64, 200), plain(1, 2, 130, 64, 100);
    plain.fill_random(random, 100);
    const Tensor counts(DType::kInt32, {1, 2, 6});
    wide.counts = counts.slice(2, 0, 6, 2);
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t g = 0; g < 3; ++g) wide.set(0, h, g, plain.get(0, h, g));
    }
    wide.indices = wide.indices.slice(3, 0, 100);
    const Part a = column_sparse(problem, wide, nullptr, Part(kSmall, DType::kFloat32));
    const Part b = column_sparse(problem, plain, nullptr, Part(kSmall, DType::kFloat32));
    tests.check(a.out.same_bits(b.out) && a.lse.same_bits(b.lse), "same as contiguous ones");
  });
}

// One query row, keys and values of head_dim 8 whose first element carries the score.
struct Extreme {
  Problem problem;
  Extreme(const std::vector<double>& scores, std::mt19937& random, DType dtype = DType::kFloat32)
      : problem({1, 1, 1, 3, static_cast<int64_t>(scores.size()), 8, 64}, dtype,
                Layout::kContiguous, random) {
    problem.scale = 1.0f;
    problem.q.fill(0.0);
    problem.k.fill(0.0);
    for (int64_t i = 0; i < 3; ++i) problem.q.set({0, 0, i, 0}, 1.0);
    for (size_t j = 0; j < scores.size(); ++j) {
      problem.k.set({0, 0, static_cast<int64_t>(j), 0}, scores[j]);
    }
  }
  int64_t differences_of_dense() const {
    const std::vector<int64_t> all = testing::all_columns(problem.k.size(2));
    const Part got = dense(problem, Part(problem.q.dtype(), 1, 1, 3, 8));
    return differences(problem, got, [&](int64_t, int64_t, int64_t) { return all; });
  }
};

void extremes(testing::Tests& tests) {
  tests.add("scores of every size", [&] {
    std::mt19937 random(5);
    const std::vector<std::vector<double>> cases = {
        {1000.0, 999.0, -1000.0},
        {-1000.0, -1001.0},
        {-88.0, 0.0, -104.0, 88.0},
        {-3e4, 3e4},
        {0.0},
        {5.0, 5.0, 5.0, 5.0},
    };
    for (const std::vector<double>& scores : cases) {
      tests.check(Extreme(scores, random).differences_of_dense() == 0, std::to_string(scores[0]));
    }
    // A maximum that rises from block to block, and one that comes first.
    std::vector<double> rising;
    for (int j = 0; j < 300; ++j) rising.push_back(0.7 * j - 100.0);
    tests.check(Extreme(rising, random).differences_of_dense() == 0, "rising");
    std::reverse(rising.begin(), rising.end());
    tests.check(Extreme(rising, random).differences_of_dense() == 0, "falling");
  });
  tests.add("NaN and inf go where softmax takes them", [&] {
    std::mt19937 random(6);
    const std::vector<std::vector<double>> cases = {
        {1.0, kInf, 2.0}, {kNan, 1.0},  {kInf, kNan},       {-kInf, 1.0, -kInf},
        {-kInf, -kInf},   {kInf, kInf}, {1.0, -kInf, kInf},
    };
    for (const std::vector<double>& scores : cases) {
      for (const int64_t before : {0, 64, 100}) {  // in the first block or a later one
        std::vector<double> padded(static_cast<size_t>(before), scores[0] == -kInf ? -kInf : 0.5);
        padded.insert(padded.end(), scores.begin(), scores.end());
        Extreme extreme(padded, random);
        // 0 inf is NaN: the other elements of q and k must not meet inf.
        tests.check(extreme.differences_of_dense() == 0,
                    std::to_string(scores[0]) + " after " + std::to_string(before));
      }
    }
    Extreme values({0.0, 1.0, 2.0}, random);
    values.problem.v.set({0, 0, 1, 3}, kInf);
    values.problem.v.set({0, 0, 2, 4}, kNan);
    const Part got = dense(values.problem, Part(DType::kFloat32, 1, 1, 3, 8));
    tests.check(got.out.get({0, 0, 2, 3}) == kInf, "inf in v");
    tests.check(std::isnan(got.out.get({0, 0, 2, 4})), "NaN in v");
    tests.check(std::isfinite(got.out.get({0, 0, 2, 5})), "other elements");
    tests.check(std::isfinite(got.lse.get({0, 0, 2})), "lse");
  });
  tests.add("scales: zero, negative", [&] {
    std::mt19937 random(8);
    for (const float scale : {0.0f, -0.25f, 0.5f}) {
      Problem problem(kSmall, DType::kFloat32, Layout::kContiguous, random);
      problem.scale = scale;
      const std::vector<int64_t> all = testing::all_columns(100);
      const Part got = dense(problem, Part(kSmall, DType::kFloat32));
      tests.check(differences(problem, got, [&](int64_t, int64_t, int64_t) { return all; }) == 0,
                  std::to_string(scale));
    }
  });
  tests.add("float32 values of every magnitude survive", [&] {
    std::mt19937 random(9);
    Extreme values({0.0}, random);
    const double magnitudes[] = {1e-40, 1e-38, 1e38, 3.4e38, -1e-45, 0.0, -0.0, 1.0};
    for (int64_t d = 0; d < 8; ++d) values.problem.v.set({0, 0, 0, d}, magnitudes[d]);
    const Part got = dense(values.problem, Part(DType::kFloat32, 1, 1, 3, 8));
    for (int64_t d = 0; d < 8; ++d) {
      tests.check(got.out.get({0, 0, 1, d}) == values.problem.v.get({0, 0, 0, d}),
                  std::to_string(magnitudes[d]));
    }
  });
}

void empties(testing::Tests& tests) {
  tests.add("no keys: zeros and -inf", [&] {
    const Problem problem = [] {
      std::mt19937 random(10);
      return Problem({1, 2, 1, 5, 0, 16, 64}, DType::kBFloat16, Layout::kContiguous, random);
    }();
    const Part got = dense(problem, Part(DType::kBFloat16, 1, 2, 5, 16));
    for (int64_t i = 0; i < 5; ++i) {
      tests.check(got.lse.get({0, 1, i}) == -kInf, "lse");
      tests.check(got.out.get({0, 1, i, 15}) == 0.0, "out");
    }
  });
  tests.add("no queries, no heads, no batch: nothing happens", [&] {
    std::mt19937 random(11);
    for (const Shape& s : {Shape{1, 2, 1, 0, 4, 16, 64}, Shape{0, 2, 1, 3, 4, 16, 64},
                           Shape{1, 0, 0, 3, 4, 16, 64}, Shape{1, 0, 2, 3, 4, 16, 64}}) {
      Problem problem(s, DType::kFloat32, Layout::kContiguous, random);
      const Part got = dense(problem, Part(s, DType::kFloat32));
      const Lists lists(s.batch, s.query_heads, s.queries, 64, 4);
      column_sparse(problem, lists, nullptr, got);
      tests.check(got.lse.view().numel() == 0, "empty");
    }
  });
  tests.add("any number of threads gives the same bits", [&] {
    std::mt19937 random(12);
    const Shape s{2, 2, 1, 400, 150, 64, 192};
    const Problem problem(s, DType::kFloat32, Layout::kContiguous, random);
    const Part first = dense(problem, Part(s, DType::kFloat32));
    for (const int threads : {1, 3, 8}) {
      const Part got = Part(s, DType::kFloat32);
      chipmunk::dense_attention(problem.q, problem.k, problem.v, nullptr, problem.scale, got.part(),
                                Context{nullptr, threads});
      tests.check(got.out.same_bits(first.out) && got.lse.same_bits(first.lse), "threads");
    }
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  values(tests);
  lists(tests);
  extremes(tests);
  empties(tests);
  return tests.run();
}
