// Groups that query_rows makes up, and key_weights: against double loops, against reordered inputs,
// and what the ops say of wrong ones.
#include <algorithm>
#include <string>

#include "attention_arguments.h"

namespace {

using chipmunk::Context;
using testing::all_columns;
using testing::Arguments;
using testing::DType;
using testing::kInf;
using testing::Layout;
using testing::Lists;
using testing::Messages;
using testing::Part;
using testing::Problem;
using testing::Shape;
using testing::Sums;
using testing::Tensor;
using testing::TensorView;

// Several tiles a group, one, and a part of one; last groups that are ragged.
constexpr Shape kShapes[] = {
    {1, 2, 1, 500, 90, 64, 192}, {2, 4, 2, 300, 70, 40, 128}, {1, 3, 3, 65, 129, 96, 64},
    {1, 1, 1, 450, 65, 8, 400},  {2, 2, 1, 17, 30, 256, 7},   {1, 2, 2, 1, 1, 128, 64},
};

using Permutation = std::vector<int64_t>;

Permutation shuffled(int64_t n, std::mt19937& random) {
  Permutation rows = all_columns(n);
  std::shuffle(rows.begin(), rows.end(), random);
  return rows;
}

Permutation inverse(const Permutation& rows) {
  Permutation back(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    back[static_cast<size_t>(rows[i])] = static_cast<int64_t>(i);
  }
  return back;
}

Tensor as_tensor(const Permutation& rows) {
  const Tensor t(DType::kInt32, {static_cast<int64_t>(rows.size())});
  for (size_t i = 0; i < rows.size(); ++i) {
    t.set_flat(static_cast<int64_t>(i), static_cast<double>(rows[i]));
  }
  return t;
}

// A copy of `x` [batch, heads, rows, ..] whose row i is rows[i] of x.
Tensor picked(const Tensor& x, const Permutation& rows) {
  const Tensor to = x.clone();
  const int64_t n = x.size(2), size = x.view().rank == 4 ? x.size(3) : 1;
  const std::vector<double> from = x.numbers();
  for (int64_t i = 0; i < x.view().numel(); ++i) {
    const int64_t head = i / (n * size), row = i / size % n;
    to.set_flat(
        i,
        from[static_cast<size_t>((head * n + rows[static_cast<size_t>(row)]) * size + i % size)]);
  }
  return to;
}

Part picked(const Part& part, const Permutation& rows) {
  Part to = part;
  to.out = picked(part.out, rows);
  to.lse = picked(part.lse, rows);
  return to;
}

Problem picked(const Problem& problem, const Permutation& rows) {
  Problem to = problem;
  to.q = picked(problem.q, rows);
  return to;
}

bool same_bits(const Part& a, const Part& b) {
  return a.out.same_bits(b.out) && a.lse.same_bits(b.lse);
}

Part sparse_by_rows(const Problem& problem, const Lists& lists, const Part* rest,
                    const Tensor& query_rows, const Part& result) {
  const chipmunk::AttentionPart rest_part = rest != nullptr ? rest->part() : result.part();
  chipmunk::column_sparse_attention(problem.q, problem.k, problem.v, lists.lists(),
                                    rest != nullptr ? &rest_part : nullptr, &query_rows.view(),
                                    problem.scale, result.part(), Context{});
  return result;
}

const TensorView* view_or_null(const Tensor* t) { return t != nullptr ? &t->view() : nullptr; }

Sums sums_by(const Problem& problem, const Shape& s, const Tensor* reference, DType sums_dtype,
             const Tensor* query_rows, const Tensor* key_weights, Layout layout) {
  Sums got{Part(s, problem.q.dtype(), layout),
           testing::make_rows(sums_dtype, s.batch, s.query_heads, s.groups(), s.keys, layout)};
  chipmunk::dense_attention_column_sums(
      problem.q, problem.k, problem.v, view_or_null(reference), view_or_null(key_weights),
      view_or_null(query_rows), s.query_group, problem.scale, got.part.part(), got.sums, Context{});
  return got;
}

template <class Body>
void for_each_problem(const Body& body) {
  std::mt19937 random(21);
  for (const DType dtype : testing::kFloatTypes) {
    for (const Shape& s : kShapes) {
      for (const Layout layout : testing::kLayouts) {
        body(s, Problem(s, dtype, layout, random), layout, random,
             std::string(chipmunk::name_of(dtype)) + " queries " + std::to_string(s.queries) +
                 " layout " + std::to_string(static_cast<int>(layout)));
      }
    }
  }
}

void query_rows(testing::Tests& tests) {
  tests.add("column-sparse attention of groups by query_rows", [&] {
    for_each_problem([&](const Shape& s, const Problem& problem, Layout layout,
                         std::mt19937& random, const std::string& name) {
      const DType dtype = problem.q.dtype();
      const Permutation rows = shuffled(s.queries, random), back = inverse(rows);
      const Lists lists(s.batch, s.query_heads, s.queries, s.query_group, s.keys + 3);
      lists.fill_random(random, s.keys);
      const auto columns_of = [&](int64_t b, int64_t h, int64_t i) {
        return lists.get(b, h, back[static_cast<size_t>(i)] / s.query_group);
      };
      const Part result(s, dtype, layout);
      const Part got = sparse_by_rows(problem, lists, nullptr, as_tensor(rows), result);
      tests.check(testing::differences(problem, got, columns_of) == 0, name);

      Part rest(s, dtype, layout);
      rest.out.fill_normal(random);
      rest.lse.fill_normal(random, 4.0);
      const Part own(s, dtype, layout);
      const Part merged = sparse_by_rows(problem, lists, &rest, as_tensor(rows), own);
      tests.check(testing::differences(problem, merged, columns_of, &rest) == 0, "rest, " + name);

      // The bits of reordered inputs.
      const Part first =
          testing::column_sparse(picked(problem, rows), lists, nullptr, Part(s, dtype));
      tests.check(same_bits(picked(first, back), got), "reordered, " + name);
      const Part picked_rest = picked(rest, rows);
      const Part second =
          testing::column_sparse(picked(problem, rows), lists, &picked_rest, Part(s, dtype));
      tests.check(same_bits(picked(second, back), merged), "reordered with rest, " + name);

      const Part in_place = sparse_by_rows(problem, lists, &rest, as_tensor(rows), rest);
      tests.check(same_bits(in_place, merged), "in place, " + name);
    });
  });
  tests.add("column sums of groups by query_rows", [&] {
    for_each_problem([&](const Shape& s, const Problem& problem, Layout layout,
                         std::mt19937& random, const std::string& name) {
      const Permutation rows = shuffled(s.queries, random), back = inverse(rows);
      const Tensor given = testing::make_lse(s.batch, s.query_heads, s.queries, layout);
      given.fill_normal(random, 2.0);
      const Problem reordered = picked(problem, rows);
      const Tensor reordered_lse = picked(given, rows), query_rows = as_tensor(rows);
      for (const bool exact : {true, false}) {
        const Sums got = sums_by(problem, s, exact ? nullptr : &given, DType::kFloat32, &query_rows,
                                 nullptr, layout);
        const Tensor* const reference = exact ? nullptr : &reordered_lse;
        tests.check(testing::wrong_sums(reordered, s.query_group, reference, got.sums) == 0, name);
        const Sums want = testing::column_sums(reordered, s, reference, DType::kFloat32);
        tests.check(want.sums.same_bits(got.sums), "sums of reordered rows, " + name);
        tests.check(same_bits(picked(want.part, back), got.part), "reordered, " + name);
      }
    });
  });
  tests.add(
      "rows as they come give the bits of no query_rows, and dense attention always does", [&] {
        for_each_problem([&](const Shape& s, const Problem& problem, Layout layout,
                             std::mt19937& random, const std::string& name) {
          const DType dtype = problem.q.dtype();
          const Tensor identity = as_tensor(all_columns(s.queries));
          const Lists lists(s.batch, s.query_heads, s.queries, s.query_group, s.keys);
          lists.fill_random(random, s.keys);
          const Part sparse = testing::column_sparse(problem, lists, nullptr, Part(s, dtype));
          tests.check(
              same_bits(sparse, sparse_by_rows(problem, lists, nullptr, identity, Part(s, dtype))),
              "sparse, " + name);
          const Sums sums = testing::column_sums(problem, s, nullptr, DType::kFloat32);
          const Sums same =
              sums_by(problem, s, nullptr, DType::kFloat32, &identity, nullptr, layout);
          tests.check(same_bits(sums.part, same.part) && sums.sums.same_bits(same.sums),
                      "sums, " + name);
          const Part dense = testing::dense(problem, Part(s, dtype));
          const Part by_rows(s, dtype, layout);
          const Tensor query_rows = as_tensor(shuffled(s.queries, random));
          chipmunk::dense_attention(problem.q, problem.k, problem.v, &query_rows.view(),
                                    problem.scale, by_rows.part(), Context{});
          tests.check(same_bits(dense, by_rows), "dense, " + name);
        });
      });
}

void key_weights(testing::Tests& tests) {
  tests.add("key_weights multiply the float32 sums before they are rounded", [&] {
    for_each_problem([&](const Shape& s, const Problem& problem, Layout layout,
                         std::mt19937& random, const std::string& name) {
      const Tensor wide(DType::kFloat32, {s.kv_heads, s.batch, s.keys + 5});
      wide.fill_normal(random);
      for (int64_t i = 0; i < wide.view().numel(); i += 7) {
        constexpr double kSpecial[] = {0.0, -1.0, kInf, -kInf, 1e30, 1e-30};
        wide.set_flat(i, kSpecial[i / 7 % 6]);
      }
      const Tensor weights = wide.slice(2, 2, s.keys + 2).transposed(0, 1);
      const Sums plain = sums_by(problem, s, nullptr, DType::kFloat32, nullptr, nullptr, layout);
      for (const DType sums_dtype : {DType::kFloat32, DType::kBFloat16}) {
        const Sums got = sums_by(problem, s, nullptr, sums_dtype, nullptr, &weights, layout);
        tests.check(same_bits(plain.part, got.part), "out and lse, " + name);
        int64_t wrong = 0;
        for (int64_t b = 0; b < s.batch; ++b) {
          for (int64_t h = 0; h < s.query_heads; ++h) {
            for (int64_t g = 0; g < s.groups(); ++g) {
              for (int64_t j = 0; j < s.keys; ++j) {
                const double weight = weights.get({b, h / (s.query_heads / s.kv_heads), j});
                const double sum = plain.sums.get({b, h, g, j});
                // The product of two floats is exact in double.
                const double want =
                    testing::rounded(testing::rounded(sum * weight, DType::kFloat32), sums_dtype);
                const double is = got.sums.get({b, h, g, j});
                wrong += !(is == want || (std::isnan(is) && std::isnan(want)));
              }
            }
          }
        }
        tests.check(wrong == 0, name);
      }
    });
  });
}

void errors(testing::Tests& tests) {
  tests.add("wrong query_rows", [&] {
    Messages m(tests);
    for (const auto& [op, name] : {std::pair{&Arguments::dense, "dense_attention"},
                                   std::pair{&Arguments::sums, "dense_attention_column_sums"},
                                   std::pair{&Arguments::sparse, "column_sparse_attention"}}) {
      const std::string prefix = std::string(name) + ": query_rows: expected ";
      m.expect(
          op, [](Arguments& x) { x.query_rows.shape[0] = 99; },
          prefix + "shape [queries=100], got [99]");
      m.expect(
          op, [](Arguments& x) { x.query_rows.rank = 2; },
          prefix + "shape [queries=100], got [100, 0]");
      m.expect(
          op, [](Arguments& x) { x.query_rows.dtype = DType::kFloat32; },
          prefix + "dtype int32, got float32");
      m.expect(
          op, [](Arguments& x) { testing::to_gpu(x.query_rows); },
          prefix + "device cpu as q, got cuda:0");
      m.expect(
          op, [](Arguments& x) { x.query_rows.strides[0] = 2; },
          prefix + "a contiguous last dimension (stride 1), got stride 2");
      m.expect(
          op, [](Arguments& x) { x.query_rows.data = nullptr; },
          prefix + "data, got a null pointer");
      m.expect(
          op, [](Arguments& x) { x.query_rows.data = x.result.lse.data; },
          std::string(name) +
              ": lse: expected memory apart from query_rows, "
              "got memory that overlaps it");
    }
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.query_rows.data = x.column_sums.data; },
        "dense_attention_column_sums: column_sums: expected memory apart from query_rows, "
        "got memory that overlaps it");
  });
  tests.add("wrong key_weights", [&] {
    Messages m(tests);
    const std::string op = "dense_attention_column_sums: ";
    const std::string prefix = op + "key_weights: expected ";
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.key_weights.shape[1] = 4; },
        prefix + "shape [batch=2, kv_heads=2, keys=30], got [2, 4, 30]");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.key_weights.dtype = DType::kBFloat16; },
        prefix + "dtype float32, got bfloat16");
    m.expect(
        &Arguments::sums, [](Arguments& x) { testing::to_gpu(x.key_weights); },
        prefix + "device cpu as q, got cuda:0");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.key_weights.strides[2] = 0; },
        prefix + "a contiguous last dimension (stride 1), got stride 0");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.key_weights.data = nullptr; },
        prefix + "data, got a null pointer");
    for (const auto& [name, output] :
         {std::pair{"out", +[](Arguments& x) { return x.result.out.data; }},
          std::pair{"lse", +[](Arguments& x) { return x.result.lse.data; }},
          std::pair{"column_sums", +[](Arguments& x) { return x.column_sums.data; }}}) {
      m.expect(
          &Arguments::sums, [output](Arguments& x) { x.key_weights.data = output(x); },
          op + name + ": expected memory apart from key_weights, got memory that overlaps it");
    }
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  query_rows(tests);
  key_weights(tests);
  errors(tests);
  return tests.run();
}
