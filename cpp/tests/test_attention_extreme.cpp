// Attention where scores are as large as finite dot products allow: every op against double loops.
//
// Elements of q and k are small integers times powers of two, so that float32 sums of their
// products are exact: how large scores are rounded is then no excuse, and many are equal.
#include <algorithm>
#include <string>

#include "attention_problem.h"
#include "testing.h"

namespace {

using chipmunk::Context;
using testing::differences;
using testing::DType;
using testing::kInf;
using testing::Layout;
using testing::Lists;
using testing::Part;
using testing::Problem;
using testing::Shape;
using testing::Sums;
using testing::Tensor;

// More queries than a panel, keys that take three blocks.
constexpr Shape kShape{1, 2, 1, 67, 150, 16, 32};

// Dot products are multiples of 2^power and below 2^(power + 8) in magnitude.
Problem problem_of(DType dtype, int power, float scale, std::mt19937& random) {
  Problem problem(kShape, dtype, Layout::kContiguous, random);
  problem.scale = scale;
  const int half = power / 2;
  const auto fill = [&](const Tensor& t, int exponent) {
    for (int64_t i = 0; i < t.view().numel(); ++i) {
      t.set_flat(i, std::ldexp(static_cast<double>(random() % 7) - 3.0, exponent));
    }
  };
  fill(problem.q, half);
  fill(problem.k, power - half);
  // Rows of ordinary size beside extreme ones, and one whose scores are all 0.
  for (int64_t i = 0; i < kShape.queries; i += 5) {
    for (int64_t d = 0; d < kShape.head_dim; ++d) {
      const double x = problem.q.get({0, 1, i, d});
      problem.q.set({0, 1, i, d}, i == 0 ? 0.0 : std::ldexp(x, std::min(0, 8 - power)));
    }
  }
  return problem;
}

// float16 ends at 65504 and 2^-24, the others where dot products end.
int largest_power(DType dtype) { return dtype == DType::kFloat16 ? 28 : 119; }
int smallest_power(DType dtype) { return dtype == DType::kFloat16 ? -20 : -100; }

std::string text(DType dtype, int power, float scale) {
  char numbers[64];
  std::snprintf(numbers, sizeof(numbers), " dot products 2^%d, scale %g", power, scale);
  return chipmunk::name_of(dtype) + std::string(numbers);
}

// body(problem, name) for sizes of dot products and of scales.
template <class Body>
void for_each_size(const Body& body) {
  std::mt19937 random(1);
  for (const DType dtype : testing::kFloatTypes) {
    for (int power = smallest_power(dtype); power <= largest_power(dtype);
         power += power >= 12 && power < 36 ? 1 : 7) {
      for (const float scale : {0.25f, -1.0f}) {
        body(problem_of(dtype, power, scale, random), text(dtype, power, scale));
      }
    }
    for (const int power : {smallest_power(dtype), -3, 20, largest_power(dtype)}) {
      for (const float scale : {0.0f, 0x1p-149f, -0x1p-140f, 0x1p-126f, 0x1p-110f, 0x1p-60f,
                                -0x1p60f, 0x1p110f, 0x1p127f}) {
        body(problem_of(dtype, power, scale, random), text(dtype, power, scale));
      }
    }
  }
}

// Parts to merge with: the lse of `own`, apart by a little, far off, and as far as float32 goes.
Part rest_for(const Part& own, DType dtype, std::mt19937& random) {
  Part rest(kShape, dtype);
  rest.out.fill_normal(random);
  for (int64_t i = 0; i < rest.lse.view().numel(); ++i) {
    const double lse = own.lse.get_flat(i);
    const double lses[] = {lse, lse + 1.0, -lse, 2.0 * lse, 0.0, -kInf, 3e38, -3e38};
    const double chosen = lses[i % std::ssize(lses)];
    // A rest whose lse overflows is no finite input.
    rest.lse.set_flat(i, chosen == -kInf ? chosen : std::clamp(chosen, -3.4e38, 3.4e38));
  }
  return rest;
}

void sizes(testing::Tests& tests) {
  tests.add("dense attention", [&] {
    for_each_size([&](const Problem& problem, const std::string& name) {
      const std::vector<int64_t> all = testing::all_columns(kShape.keys);
      const Part got = testing::dense(problem, Part(kShape, problem.q.dtype()));
      tests.check(differences(problem, got, [&](int64_t, int64_t, int64_t) { return all; }) == 0,
                  name);
    });
  });
  tests.add("column-sparse attention, alone and merged with a rest", [&] {
    std::mt19937 random(2);
    Lists lists(1, 2, kShape.queries, kShape.query_group, kShape.keys);
    lists.fill_random(random, kShape.keys);
    const auto columns_of = [&](int64_t b, int64_t h, int64_t i) {
      return lists.get(b, h, i / kShape.query_group);
    };
    for_each_size([&](const Problem& problem, const std::string& name) {
      const DType dtype = problem.q.dtype();
      const Part alone = testing::column_sparse(problem, lists, nullptr, Part(kShape, dtype));
      tests.check(differences(problem, alone, columns_of) == 0, name);
      const Part rest = rest_for(alone, dtype, random);
      const Part merged = testing::column_sparse(problem, lists, &rest, Part(kShape, dtype));
      tests.check(differences(problem, merged, columns_of, &rest) == 0, "rest, " + name);
    });
  });
  tests.add("column sums relative to the exact lse, to a rounded one and to others", [&] {
    std::mt19937 random(3);
    for_each_size([&](const Problem& problem, const std::string& name) {
      const DType dtype = problem.q.dtype();
      const Part whole = testing::dense(problem, Part(kShape, dtype));
      const Sums exact = testing::column_sums(problem, kShape, nullptr, DType::kFloat32);
      tests.check(testing::wrong_sums(problem, kShape.query_group, nullptr, exact.sums) == 0,
                  "exact, " + name);
      const Part other = rest_for(whole, dtype, random);
      for (const Part& given : {whole, other}) {
        const Sums got = testing::column_sums(problem, kShape, &given.lse, DType::kFloat32);
        tests.check(testing::wrong_sums(problem, kShape.query_group, &given.lse, got.sums) == 0,
                    "given, " + name);
        tests.check(got.part.out.same_bits(whole.out) && got.part.lse.same_bits(whole.lse),
                    "attention beside given, " + name);
      }
    });
  });
  tests.add("merge_attention and rest_of_attention", [&] {
    std::mt19937 random(4);
    for (const DType dtype : testing::kFloatTypes) {
      const double epsilon = 2 * testing::half_ulp(1.0, dtype);
      for (double lse = 1.0; lse < 3.4e38; lse *= 7.0) {
        Part a(kShape, dtype);
        a.out.fill_normal(random);
        a.lse.fill(lse);
        const Part b = rest_for(a, dtype, random);
        const Part merged(kShape, dtype), rest(kShape, dtype);
        chipmunk::merge_attention(a.part(), b.part(), merged.part(), Context{});
        chipmunk::rest_of_attention(a.part(), b.part(), rest.part(), Context{});
        int64_t wrong = 0;
        for (int64_t i = 0; i < kShape.queries; ++i) {
          const testing::ExpectedRow x = a.row(0, 1, i), y = b.row(0, 1, i);
          wrong += differences(merged.row(0, 1, i), testing::expected_merge(x, y), dtype);
          wrong += differences(rest.row(0, 1, i), testing::expected_rest(x, y, epsilon), dtype);
        }
        tests.check(wrong == 0,
                    chipmunk::name_of(dtype) + std::string(" lse ") + std::to_string(lse));
      }
    }
  });
}

// Scores that differ by single units beside a part that all share, up to the largest size at
// which float32 holds the differences: the limit from which on scores are extreme lies within.
void differences_beside_a_large_part(testing::Tests& tests) {
  tests.add("small differences beside a large common part", [&] {
    std::mt19937 random(5);
    const std::vector<int64_t> all = testing::all_columns(kShape.keys);
    for (const DType dtype : testing::kFloatTypes) {
      for (int power = 8; power <= 23; ++power) {
        for (const float scale : {0.5f, 1.0f, -1.0f, 2.0f}) {
          for (const double sign : {1.0, -1.0}) {
            Problem problem(kShape, dtype, Layout::kContiguous, random);
            problem.scale = scale;
            problem.q.fill(0.0);
            for (int64_t i = 0; i < kShape.queries * 2; ++i) {
              const int64_t h = i / kShape.queries, row = i % kShape.queries;
              problem.q.set({0, h, row, 0}, sign * std::ldexp(1.0, power / 2));
              problem.q.set({0, h, row, 1}, row % 3 == 0 ? 0.0 : 1.0);
            }
            for (int64_t j = 0; j < kShape.keys; ++j) {
              // The maximum of a later block is far from that of the first.
              const double part = j < 64 ? 0.75 : 1.0;
              problem.k.set({0, 0, j, 0}, std::ldexp(part, power - power / 2));
              problem.k.set({0, 0, j, 1}, static_cast<double>(random() % 9));
            }
            const std::string name = text(dtype, power, scale) + (sign > 0 ? " +" : " -");
            const Part got = testing::dense(problem, Part(kShape, dtype));
            tests.check(
                differences(problem, got, [&](int64_t, int64_t, int64_t) { return all; }) == 0,
                name);
            for (const Tensor* reference : {static_cast<const Tensor*>(nullptr), &got.lse}) {
              const Sums sums = testing::column_sums(problem, kShape, reference, DType::kFloat32);
              tests.check(
                  testing::wrong_sums(problem, kShape.query_group, reference, sums.sums) == 0,
                  "sums, " + name);
            }
          }
        }
      }
    }
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  sizes(tests);
  differences_beside_a_large_part(tests);
  return tests.run();
}
