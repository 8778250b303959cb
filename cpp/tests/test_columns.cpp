#include <algorithm>
#include <limits>
#include <numeric>

#include "chipmunk_kernels/columns.h"
#include "columns_case.h"
#include "tensor.h"
#include "testing.h"

namespace {

using chipmunk::ColumnSelection;
using chipmunk::Context;
using testing::DType;
using testing::Lists;
using testing::Tensor;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

std::string text(const std::vector<int64_t>& list) {
  std::string out;
  for (const int64_t i : list) out += std::to_string(i) + " ";
  return out;
}

uint64_t splitmix64(uint64_t x) {
  uint64_t z = x + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The definition, by stable sorts: what reference/columns.py says.
std::vector<int64_t> expected_row(const std::vector<double>& scores, const std::vector<bool>& first,
                                  const ColumnSelection& selection, int64_t row, int64_t limit) {
  const int64_t n = static_cast<int64_t>(scores.size());
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  std::vector<int64_t> ranking(scores.size());
  std::iota(ranking.begin(), ranking.end(), 0);
  const auto ordered = [&](int64_t j) { return std::isnan(scores[at(j)]) ? -kInf : scores[at(j)]; };
  std::stable_sort(ranking.begin(), ranking.end(), [&](int64_t a, int64_t b) {
    if (first[at(a)] != first[at(b)]) return bool{first[at(a)]};
    return ordered(a) > ordered(b);
  });
  const int64_t always = std::count(first.begin(), first.end(), true);
  limit = std::min({limit, n, selection.max_count.value_or(n)});
  int64_t by_rank = 0, by_chance = 0;
  if (selection.count) {
    const int64_t total =
        std::min(limit, std::max({*selection.count, always, selection.min_count}));
    by_chance = static_cast<int64_t>(selection.random_fraction * static_cast<double>(total));
    by_chance = std::min(by_chance, std::max<int64_t>(0, total - always));
    by_rank = total - by_chance;
  } else {
    std::vector<double> sums = {0.0};
    for (const int64_t j : ranking) {
      sums.push_back(sums.back() + (scores[at(j)] > 0.0 ? scores[at(j)] : 0.0));
    }
    while (sums[at(by_rank)] < *selection.mass * sums.back()) ++by_rank;
    by_rank = std::min(limit, std::max({by_rank, always, selection.min_count}));
    by_chance = static_cast<int64_t>(selection.random_fraction * static_cast<double>(by_rank));
    by_chance = std::min(by_chance, limit - by_rank);
  }
  std::vector<int64_t> rest(ranking.begin() + by_rank, ranking.end());
  ranking.resize(at(by_rank));
  const auto hash = [&](int64_t j) {
    return splitmix64(splitmix64(selection.seed) ^
                      (static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(j)));
  };
  std::sort(rest.begin(), rest.end(), [&](int64_t a, int64_t b) { return hash(a) < hash(b); });
  ranking.insert(ranking.end(), rest.begin(), rest.begin() + by_chance);
  std::sort(ranking.begin(), ranking.end());
  return ranking;
}

void add_selection_tests(testing::Tests& tests) {
  tests.add("selection by hand: count, ties to the lower index, NaN and -0", [&] {
    Tensor scores(DType::kFloat32, {1, 8});
    const double values[] = {1.0, kNan, 3.0, -0.0, 3.0, 0.0, -kInf, 3.0};
    for (int64_t j = 0; j < 8; ++j) scores.set({0, j}, values[j]);
    const auto select = [&](ColumnSelection selection) {
      Lists lists({1}, 8);
      chipmunk::select_columns(scores, nullptr, selection, lists.lists(), Context{});
      return text(lists.row(0));
    };
    tests.check(select({.count = 0}).empty(), "0");
    tests.check(select({.count = 2}) == "2 4 ", "2: " + select({.count = 2}));
    tests.check(select({.count = 5}) == "0 2 3 4 7 ", "5: " + select({.count = 5}));
    tests.check(select({.count = 7}) == "0 1 2 3 4 5 7 ", "7: " + select({.count = 7}));
    tests.check(select({.count = 99}) == "0 1 2 3 4 5 6 7 ", "all");
    tests.check(select({.mass = 0.0}).empty(), "mass 0");
    tests.check(select({.mass = 0.6}) == "2 4 ", "mass 0.6: " + select({.mass = 0.6}));
    tests.check(select({.mass = 0.61}) == "2 4 7 ", "mass 0.61");
    tests.check(select({.mass = 1.0}) == "0 2 4 7 ", "mass 1: " + select({.mass = 1.0}));
    tests.check(select({.mass = 0.0, .min_count = 2}) == "2 4 ", "min_count");
    tests.check(select({.mass = 1.0, .max_count = 1}) == "2 ", "max_count");
  });

  tests.add("selection agrees with stable sorts over random cases", [&] {
    std::mt19937 random(1);
    const auto uniform = [&](int64_t from, int64_t to) {
      return std::uniform_int_distribution<int64_t>(from, to)(random);
    };
    const auto fraction = [&] { return std::uniform_real_distribution<double>(0, 1)(random); };
    for (int trial = 0; trial < 400; ++trial) {
      const int64_t heads = uniform(1, 3), groups = uniform(1, 3);
      const int64_t n = trial % 50 == 0 ? 20000 : uniform(1, 300);
      const DType dtype = std::array{DType::kFloat32, DType::kBFloat16, DType::kFloat16}[trial % 3];
      const Tensor whole(dtype, {heads, groups, 2 * n});
      whole.fill(kNan);  // what lies between a strided view's columns
      const Tensor scores = trial % 2 ? whole.slice(2, 0, 2 * n, 2) : whole.slice(2, 3 % n, n);
      const int64_t columns = scores.size(2);
      const int levels = trial % 4 == 0 ? 3 : 1 << 20;  // few levels: many ties
      for (int64_t i = 0; i < scores.view().numel(); ++i) {
        const double score = static_cast<double>(uniform(-levels / 8, levels)) / levels;
        scores.set_flat(i, uniform(0, 40) == 0 ? kNan : score);
      }
      const bool with_always = trial % 3 != 1;
      const Tensor always_row(DType::kBool, {columns});
      const double always_share = trial % 7 == 0 ? 0.9 : 0.05;
      for (int64_t j = 0; j < columns; ++j) always_row.set({j}, fraction() < always_share);

      ColumnSelection selection;
      if (trial % 5 < 3) {
        selection.count = uniform(0, columns + 3);
      } else {
        selection.mass = trial % 5 == 3 ? fraction() : 1.0;
      }
      if (trial % 4 == 1) selection.min_count = uniform(0, columns);
      if (trial % 6 == 2) selection.max_count = uniform(selection.min_count, columns + 2);
      if (trial % 2 == 0) selection.random_fraction = trial % 8 == 0 ? 1.0 : fraction();
      selection.seed = (static_cast<uint64_t>(random()) << 32) | random();
      const int64_t capacity =
          trial % 9 == 0 ? std::max(selection.min_count, columns / 2) : columns;

      Lists lists({heads, groups}, capacity);
      chipmunk::select_columns(scores, with_always ? &always_row.view() : nullptr, selection,
                               lists.lists(), Context{.cpu_threads = 1 + trial % 3});
      for (int64_t row = 0; row < heads * groups; ++row) {
        std::vector<double> values;
        std::vector<bool> first;
        for (int64_t j = 0; j < columns; ++j) {
          values.push_back(scores.get_flat(row * columns + j));
          first.push_back(with_always && always_row.get({j}) != 0);
        }
        const std::vector<int64_t> expected = expected_row(values, first, selection, row, capacity);
        tests.check(lists.row(row) == expected, "trial " + std::to_string(trial) + ": expected " +
                                                    text(expected) + "got " + text(lists.row(row)));
      }
    }
  });

  tests.add("always broadcasts over leading dimensions", [&] {
    const Tensor scores(DType::kFloat32, {2, 3, 4});
    const Tensor per_head(DType::kBool, {2, 1, 4});
    per_head.set({1, 0, 3}, 1);
    Lists lists({2, 3}, 4);
    chipmunk::select_columns(scores, &per_head.view(), {.count = 1}, lists.lists(), Context{});
    for (int64_t row = 0; row < 6; ++row) {
      tests.check(text(lists.row(row)) == (row < 3 ? "0 " : "3 "), text(lists.row(row)));
    }
  });

  tests.add("columns are drawn evenly, and anew for another seed", [&] {
    const Tensor scores(DType::kFloat32, {4000, 10});
    for (int64_t row = 0; row < 4000; ++row) scores.set({row, 9}, 1.0);
    int drawn[10] = {};
    Lists lists({4000}, 3), again({4000}, 3), other({4000}, 3);
    const auto draw = [&](uint64_t seed, const Lists& into) {
      chipmunk::select_columns(scores, nullptr, {.count = 3, .random_fraction = 0.67, .seed = seed},
                               into.lists(), Context{});
    };
    draw(5, lists);
    draw(5, again);
    draw(6, other);
    for (int64_t row = 0; row < 4000; ++row) {
      tests.check(lists.row(row).size() == 3 && lists.row(row)[2] == 9, "best one and two drawn");
      for (const int64_t j : lists.row(row)) ++drawn[j];
    }
    for (int j = 0; j < 9; ++j) {  // 4000 * 2 / 9 = 889, deviation 26
      tests.check(drawn[j] > 760 && drawn[j] < 1020, "column drawn " + std::to_string(drawn[j]));
    }
    tests.check(lists.indices.same_bits(again.indices), "same seed, same columns");
    tests.check(!lists.indices.same_bits(other.indices), "another seed, other columns");
  });

  tests.add("a call that only checks its arguments writes nothing", [&] {
    Lists lists({2}, 3);
    const Tensor scores(DType::kFloat32, {2, 9});
    chipmunk::select_columns(scores, nullptr, {.count = 3}, lists.lists(),
                             Context{.check_only = true});
    tests.check(lists.counts.get({0}) == -7 && lists.counts.get({1}) == -7, "counts kept");
  });

  tests.add("empty scores", [&] {
    Lists no_columns({2}, 0);
    chipmunk::select_columns(Tensor(DType::kFloat32, {2, 0}), nullptr, {.mass = 0.5},
                             no_columns.lists(), Context{});
    tests.check(no_columns.counts.get({0}) == 0 && no_columns.counts.get({1}) == 0, "counts 0");
    Lists no_rows({0}, 4);
    chipmunk::select_columns(Tensor(DType::kFloat32, {0, 4}), nullptr, {.count = 2},
                             no_rows.lists(), Context{});
  });
}

// Lists [2, 3] by an array of `dtype` and some shape against lists by one number, list for list.
void expect_as_by_number(testing::Tests& tests, const std::vector<int64_t>& shape, DType dtype,
                         const std::vector<double>& given, const std::vector<double>& clamped) {
  std::mt19937 random(3);
  const Tensor scores(DType::kFloat32, {2, 3, 50});
  scores.fill_normal(random);
  // Every second element of a row of them: strides are taken into account.
  std::vector<int64_t> wide = shape;
  wide.back() *= 2;
  const int32_t last = static_cast<int32_t>(shape.size()) - 1;
  const Tensor values = Tensor(dtype, wide).slice(last, 0, wide.back(), 2);
  for (size_t i = 0; i < given.size(); ++i) values.set_flat(static_cast<int64_t>(i), given[i]);
  const auto select = [&](ColumnSelection selection) {
    selection.min_count = 1;
    selection.max_count = 40;
    selection.random_fraction = 0.2;
    selection.seed = 9;
    Lists lists({2, 3}, 45);
    chipmunk::select_columns(scores, nullptr, selection, lists.lists(), Context{.cpu_threads = 2});
    return lists;
  };
  const bool by_count = dtype == DType::kInt32;
  ColumnSelection selection;
  (by_count ? selection.count_per_list : selection.mass_per_list) = values.view();
  const Lists lists = select(selection);
  for (int64_t row = 0; row < 6; ++row) {
    // The list's entry in an array of shape [2, 3], [2, 1] or [3].
    const int64_t i = shape == std::vector<int64_t>{2, 1} ? row / 3
                      : shape == std::vector<int64_t>{3}  ? row % 3
                                                          : row;
    const double value = clamped[static_cast<size_t>(i)];
    const Lists one =
        by_count ? select({.count = static_cast<int64_t>(value)}) : select({.mass = value});
    tests.check(lists.row(row) == one.row(row), "list " + std::to_string(row) + ": expected " +
                                                    text(one.row(row)) + "got " +
                                                    text(lists.row(row)));
  }
}

void add_per_list_tests(testing::Tests& tests) {
  tests.add("a count for every list, for every head, for every group", [&] {
    expect_as_by_number(tests, {2, 3}, DType::kInt32, {-5, 0, 7, 30, 50, 99},
                        {0, 0, 7, 30, 50, 50});
    expect_as_by_number(tests, {2, 1}, DType::kInt32, {3, 12}, {3, 12});
    expect_as_by_number(tests, {3}, DType::kInt32, {3, 12, 41}, {3, 12, 41});
  });
  tests.add("a mass for every list, for every head, for every group", [&] {
    // As float32 holds them.
    const double some = 0.375, more = 0.75;
    expect_as_by_number(tests, {2, 3}, DType::kFloat32, {kNan, -1, 0, some, 1, 7},
                        {0, 0, 0, some, 1, 1});
    expect_as_by_number(tests, {2, 1}, DType::kFloat32, {some, more}, {some, more});
    expect_as_by_number(tests, {3}, DType::kFloat32, {some, more, -kInf}, {some, more, 0});
  });
}

void add_order_tests(testing::Tests& tests) {
  tests.add("on the CPU, an order takes lists as they come", [&] {
    for (const bool by_mask : {false, true}) {
      Lists lists({2, 3}, 4);
      const Tensor order(DType::kInt32, {3, 6});
      chipmunk::ColumnLists columns = lists.lists();
      columns.order = order;
      if (by_mask) {
        chipmunk::columns_from_mask(Tensor(DType::kBool, {2, 3, 9}), columns, Context{});
      } else {
        chipmunk::select_columns(Tensor(DType::kFloat32, {2, 3, 9}), nullptr, {.count = 2}, columns,
                                 Context{});
      }
      for (int64_t i = 0; i < 18; ++i) tests.check(order.get_flat(i) == -1, "order");
      tests.check(lists.row(5).size() == (by_mask ? 0 : 2), "lists");
      chipmunk::validate_columns(columns, 9, Context{});
    }
  });
}

void add_mask_tests(testing::Tests& tests) {
  tests.add("mask to lists and back", [&] {
    std::mt19937 random(2);
    for (const int64_t n : {1, 7, 8, 64, 1000}) {
      const Tensor whole(DType::kBool, {3, 2, 3 * n});
      whole.fill(1);
      const Tensor mask = n % 2 ? whole.slice(2, 0, 3 * n, 3) : whole.slice(2, n, 2 * n);
      for (int64_t i = 0; i < 6 * n; ++i) mask.set_flat(i, random() % 3 == 0);
      Lists lists({3, 2}, n + 2);
      chipmunk::columns_from_mask(mask, lists.lists(), Context{});
      for (int64_t row = 0; row < 6; ++row) {
        std::vector<int64_t> expected;
        for (int64_t j = 0; j < n; ++j) {
          if (mask.get_flat(row * n + j) != 0) expected.push_back(j);
        }
        tests.check(lists.row(row) == expected, text(lists.row(row)));
      }
      const Tensor back(DType::kBool, {3, 2, n});
      back.fill(1);
      chipmunk::columns_to_mask(lists.lists(), back, Context{});
      tests.check(back.same_bits(mask), "round trip");
    }
  });

  tests.add("a row with more columns than the capacity keeps the lowest", [&] {
    const Tensor mask(DType::kBool, {2, 5});
    mask.fill(1);
    mask.set({1, 0}, 0);
    Lists lists({2}, 3);
    chipmunk::columns_from_mask(mask, lists.lists(), Context{});
    tests.check(text(lists.row(0)) == "0 1 2 ", text(lists.row(0)));
    tests.check(text(lists.row(1)) == "1 2 3 ", text(lists.row(1)));
  });

  tests.add("to mask: entries past the count and out of range change nothing", [&] {
    Lists lists({1}, 4);
    const int list[] = {-1, 2, 9, 0};
    for (int64_t i = 0; i < 4; ++i) lists.indices.set({0, i}, list[i]);
    lists.counts.set({0}, 3);
    const Tensor mask(DType::kBool, {1, 5});
    chipmunk::columns_to_mask(lists.lists(), mask, Context{});
    for (int64_t j = 0; j < 5; ++j) tests.check((mask.get({0, j}) != 0) == (j == 2), "mask");
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  add_selection_tests(tests);
  add_per_list_tests(tests);
  add_order_tests(tests);
  add_mask_tests(tests);
  return tests.run();
}
