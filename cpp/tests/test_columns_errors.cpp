// What the column ops say of wrong arguments.
#include <limits>
#include <string>

#include "chipmunk_kernels/columns.h"
#include "columns_case.h"
#include "tensor.h"
#include "testing.h"

namespace {

using chipmunk::ColumnLists;
using chipmunk::ColumnSelection;
using chipmunk::Context;
using chipmunk::InvalidArgument;
using chipmunk::Unsupported;
using testing::DType;
using testing::Lists;
using testing::message_of;
using testing::Tensor;
using testing::TensorView;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

void add_message_tests(testing::Tests& tests) {
  const auto expect = [&](const std::string& got, const std::string& expected) {
    tests.check(got == expected, "expected '" + expected + "', got '" + got + "'");
  };
  const auto select_message = [](const TensorView& scores, const TensorView* always,
                                 const ColumnSelection& selection, const ColumnLists& columns) {
    return message_of<InvalidArgument>(
        [&] { chipmunk::select_columns(scores, always, selection, columns, Context{}); });
  };

  tests.add("select_columns: messages about numbers", [=, &tests] {
    const Tensor scores(DType::kFloat32, {2, 6});
    const Lists lists({2}, 4);
    const auto message = [&](const ColumnSelection& selection) {
      return select_message(scores, nullptr, selection, lists.lists());
    };
    expect(message({}),
           "select_columns: count: expected exactly one of count and mass, got neither");
    expect(message({.count = 1, .mass = 0.5}),
           "select_columns: count: expected exactly one of count and mass, got both");
    const Tensor counts(DType::kInt32, {2}), masses(DType::kFloat32, {2});
    expect(message({.count = 1, .count_per_list = counts}),
           "select_columns: count: expected only one of count and count_per_list, got both");
    expect(message({.mass = 1, .mass_per_list = masses}),
           "select_columns: mass: expected only one of mass and mass_per_list, got both");
    expect(message({.count_per_list = counts, .mass_per_list = masses, .max_count = 2}),
           "select_columns: count: expected exactly one of count and mass, got both");
    expect(message({.count_per_list = counts}),
           "select_columns: max_count: expected a number, as count_per_list gives no capacity, got "
           "none");
    expect(message({.mass_per_list = masses}),
           "select_columns: max_count: expected a number, as mass_per_list gives no capacity, got "
           "none");
    expect(message({.count = -1}),
           "select_columns: count: expected a number of columns >= 0, got -1");
    expect(message({.mass = 1.5}),
           "select_columns: mass: expected a fraction from 0 to 1, got 1.500000");
    expect(message({.mass = kNan}),
           "select_columns: mass: expected a fraction from 0 to 1, got nan");
    expect(message({.count = 1, .random_fraction = -0.25}),
           "select_columns: random_fraction: expected a fraction from 0 to 1, got -0.250000");
    expect(message({.count = 1, .random_fraction = kNan}),
           "select_columns: random_fraction: expected a fraction from 0 to 1, got nan");
    expect(message({.count = 1, .min_count = -2}),
           "select_columns: min_count: expected a number of columns >= 0, got -2");
    expect(message({.count = 1, .max_count = -3}),
           "select_columns: max_count: expected a number of columns >= 0, got -3");
    expect(message({.count = 1, .min_count = 3, .max_count = 2}),
           "select_columns: min_count: expected at most max_count=2, got 3");
    expect(message({.count = 1, .min_count = 5}),
           "select_columns: columns.indices: expected a capacity of at least min_count=5, got 4");
    tests.check(lists.counts.get({0}) == -7, "nothing is written before an exception");
  });

  tests.add("select_columns: messages about tensors", [=, &tests] {
    const Tensor scores(DType::kFloat32, {2, 3, 6});
    const ColumnSelection one{.count = 1};
    const Lists lists({2, 3}, 4);
    const auto always_message = [&](const Tensor& always) {
      return select_message(scores, &always.view(), one, lists.lists());
    };
    expect(select_message(Tensor(DType::kFloat32, {6}), nullptr, one, lists.lists()),
           "select_columns: scores: expected shape [*lead, groups, n], got [6]");
    expect(select_message(Tensor(DType::kInt32, {2, 3, 6}), nullptr, one, lists.lists()),
           "select_columns: scores: expected dtype float32 or bfloat16 or float16, got int32");
    TensorView broken = scores;
    broken.data = nullptr;
    expect(select_message(broken, nullptr, one, lists.lists()),
           "select_columns: scores: expected data, got a null pointer");
    broken = scores;
    broken.shape[2] = int64_t{1} << 31;
    expect(select_message(broken, nullptr, one, lists.lists()),
           "select_columns: scores: expected fewer than 2^31 columns, got [2, 3, 2147483648]");
    expect(always_message(Tensor(DType::kInt32, {6})),
           "select_columns: always: expected dtype bool, got int32");
    expect(always_message(Tensor(DType::kBool, {2, 2, 6})),
           "select_columns: always: expected a shape that broadcasts to scores [2, 3, 6], got "
           "[2, 2, 6]");
    expect(always_message(Tensor(DType::kBool, {1, 2, 3, 6})),
           "select_columns: always: expected a shape that broadcasts to scores [2, 3, 6], got "
           "[1, 2, 3, 6]");
    TensorView elsewhere = Tensor(DType::kBool, {6});
    elsewhere.device = {chipmunk::DeviceType::kCuda, 1};
    expect(select_message(scores, &elsewhere, one, lists.lists()),
           "select_columns: always: expected device cpu as scores, got cuda:1");
    expect(select_message(scores, nullptr, one, Lists({2, 2}, 4).lists()),
           "select_columns: columns.counts: expected shape [2, 3] as scores, got [2, 2]");
    ColumnLists mixed = lists.lists();
    const Tensor flat(DType::kInt32, {6, 4});
    mixed.indices = flat;
    expect(
        select_message(scores, nullptr, one, mixed),
        "select_columns: columns.indices: expected shape [2, 3, capacity] as scores, got [6, 4]");
    mixed = lists.lists();
    mixed.counts.dtype = DType::kFloat32;
    expect(select_message(scores, nullptr, one, mixed),
           "select_columns: columns.counts: expected dtype int32, got float32");
    mixed = lists.lists();
    mixed.indices.read_only = true;
    expect(select_message(scores, nullptr, one, mixed),
           "select_columns: columns.indices: expected a writable array, got a read-only one");
    mixed = lists.lists();
    mixed.counts.strides[0] = 0;
    expect(select_message(scores, nullptr, one, mixed),
           "select_columns: columns.counts: expected distinct elements at distinct addresses, got "
           "a view that overlaps itself");
    mixed = lists.lists();
    mixed.indices.strides[2] = 2;
    expect(select_message(scores, nullptr, one, mixed),
           "select_columns: columns.indices: expected a contiguous last dimension (stride 1), got "
           "stride 2");
    mixed = lists.lists();
    mixed.counts.data = scores.view().data;
    expect(select_message(scores, nullptr, one, mixed),
           "select_columns: columns.counts: expected memory apart from scores, got memory that "
           "overlaps it");
    TensorView on_gpu = scores;
    on_gpu.device = {chipmunk::DeviceType::kCuda, 0};
    expect(select_message(on_gpu, nullptr, one, lists.lists()),
           "select_columns: columns.indices: expected device cuda:0 as scores, got cpu");
  });

  tests.add("select_columns: messages about numbers per list", [=, &tests] {
    const Tensor scores(DType::kFloat32, {2, 3, 6});
    const Lists lists({2, 3}, 4);
    const auto message = [&](const ColumnSelection& selection) {
      return select_message(scores, nullptr, selection, lists.lists());
    };
    const auto counts = [&](const TensorView& t) {
      return message({.count_per_list = t, .max_count = 4});
    };
    const auto masses = [&](const TensorView& t) {
      return message({.mass_per_list = t, .max_count = 4});
    };
    expect(counts(Tensor(DType::kFloat32, {2, 3})),
           "select_columns: count_per_list: expected dtype int32, got float32");
    expect(masses(Tensor(DType::kBFloat16, {2, 3})),
           "select_columns: mass_per_list: expected dtype float32, got bfloat16");
    expect(counts(Tensor(DType::kInt32, {2, 3, 1})),
           "select_columns: count_per_list: expected a shape that broadcasts to columns.counts "
           "[2, 3], got [2, 3, 1]");
    expect(masses(Tensor(DType::kFloat32, {2})),
           "select_columns: mass_per_list: expected a shape that broadcasts to columns.counts "
           "[2, 3], got [2]");
    TensorView t = Tensor(DType::kInt32, {3});
    t.device = {chipmunk::DeviceType::kCuda, 0};
    expect(counts(t), "select_columns: count_per_list: expected device cpu as scores, got cuda:0");
    t.device = {};
    t.data = nullptr;
    expect(counts(t), "select_columns: count_per_list: expected data, got a null pointer");
    expect(counts(lists.counts),
           "select_columns: columns.counts: expected memory apart from count_per_list, got memory "
           "that overlaps it");
    t = Tensor(DType::kFloat32, {3});
    t.data = lists.indices.view().data;
    expect(masses(t),
           "select_columns: columns.indices: expected memory apart from mass_per_list, got memory "
           "that overlaps it");
    tests.check(lists.counts.get({0, 0}) == -7, "nothing is written before an exception");
  });

  tests.add("an order to fill: messages", [=, &tests] {
    const Tensor mask(DType::kBool, {2, 3, 6});
    const Lists lists({2, 3}, 4);
    const Tensor right(DType::kInt32, {3, 6});
    // What is said after `change` has been made to right arguments.
    const auto message = [&](auto&& change) {
      TensorView changed_mask = mask;
      ColumnLists columns = lists.lists();
      columns.order = right;
      change(changed_mask, columns);
      return message_of<InvalidArgument>(
          [&] { chipmunk::columns_from_mask(changed_mask, columns, Context{}); });
    };
    using V = TensorView;
    using L = ColumnLists;
    expect(message([](V&, L& l) { l.order = Tensor(DType::kInt32, {3, 3}); }),
           "columns_from_mask: columns.order: expected shape [3, lists=6], got [3, 3]");
    expect(message([](V&, L& l) { l.order->read_only = true; }),
           "columns_from_mask: columns.order: expected a writable array, got a read-only one");
    expect(message([](V& m, L& l) { m.data = l.order->data; }),
           "columns_from_mask: columns.order: expected memory apart from mask, got memory that "
           "overlaps it");
    expect(message([](V&, L& l) { l.order->data = l.indices.data; }),
           "columns_from_mask: columns.order: expected memory apart from columns.indices, got "
           "memory that overlaps it");
    expect(message([](V&, L& l) { l.counts.data = l.order->data; }),
           "columns_from_mask: columns.order: expected memory apart from columns.counts, got "
           "memory that overlaps it");
    tests.check(lists.counts.get({1, 2}) == -7, "nothing is written before an exception");
  });

  tests.add("mask ops: messages", [=, &tests] {
    const Lists lists({2}, 4);
    const auto from = [&](const TensorView& mask) {
      return message_of<InvalidArgument>(
          [&] { chipmunk::columns_from_mask(mask, lists.lists(), Context{}); });
    };
    const auto to = [&](const TensorView& mask) {
      return message_of<InvalidArgument>(
          [&] { chipmunk::columns_to_mask(lists.lists(), mask, Context{}); });
    };
    expect(from(Tensor(DType::kInt32, {2, 5})),
           "columns_from_mask: mask: expected dtype bool, got int32");
    expect(from(Tensor(DType::kBool, {3, 5})),
           "columns_from_mask: columns.counts: expected shape [3] as mask, got [2]");
    expect(from(Tensor(DType::kBool, {5})),
           "columns_from_mask: mask: expected shape [*lead, groups, n], got [5]");
    expect(to(Tensor(DType::kFloat32, {2, 5})),
           "columns_to_mask: mask: expected dtype bool, got float32");
    TensorView mask = Tensor(DType::kBool, {2, 5});
    mask.data = lists.indices.view().data;
    expect(to(mask),
           "columns_to_mask: mask: expected memory apart from columns.indices, got memory that "
           "overlaps it");
    mask.read_only = true;
    expect(to(mask), "columns_to_mask: mask: expected a writable array, got a read-only one");
    tests.check(lists.counts.get({1}) == -7, "nothing is written before an exception");
  });

  tests.add("validate_columns", [=, &tests] {
    const Lists lists({1, 2}, 3);
    const auto set = [&](int64_t group, std::initializer_list<int> list, int count) {
      int64_t i = 0;
      for (const int column : list) lists.indices.set({0, group, i++}, column);
      lists.counts.set({0, group}, count);
    };
    const auto message = [&](int64_t n = 10) {
      return message_of<InvalidArgument>(
          [&] { chipmunk::validate_columns(lists.lists(), n, Context{}); });
    };
    set(0, {0, 4, 9}, 3);
    set(1, {7, 3, -5}, 1);
    expect(message(), "");
    expect(message(9),
           "validate_columns: columns.indices: expected columns from 0 to n=9, exclusive, got 9 at "
           "position 2 of list [0, 0]");
    expect(message(-1), "validate_columns: n: expected a number of columns >= 0, got -1");
    lists.counts.set({0, 1}, 2);
    expect(message(),
           "validate_columns: columns.indices: expected ascending, unique columns, got 3 at "
           "position 1 of list [0, 1] after 7");
    set(1, {7, 7, 8}, 3);
    expect(message(),
           "validate_columns: columns.indices: expected ascending, unique columns, got 7 at "
           "position 1 of list [0, 1] after 7");
    set(1, {-1, 7, 8}, 3);
    expect(message(),
           "validate_columns: columns.indices: expected columns from 0 to n=10, exclusive, got -1 "
           "at position 0 of list [0, 1]");
    lists.counts.set({0, 1}, 4);
    expect(message(),
           "validate_columns: columns.counts: expected counts from 0 to capacity=3, got 4 at "
           "[0, 1]");
    lists.counts.set({0, 1}, -1);
    expect(message(),
           "validate_columns: columns.counts: expected counts from 0 to capacity=3, got -1 at "
           "[0, 1]");
    set(0, {0, 4, 9}, 3);
    set(1, {7, 3, -5}, 1);
    ColumnLists on_gpu = lists.lists();
    on_gpu.indices.device = on_gpu.counts.device = {chipmunk::DeviceType::kCuda, 2};
    expect(message_of<Unsupported>([&] { chipmunk::validate_columns(on_gpu, 10, Context{}); }),
           "validate_columns: columns.indices: lists on cuda:2 cannot be looked into; copy them to "
           "the CPU and validate there");
    tests.check(true, "messages");
  });
}

void add_order_tests(testing::Tests& tests) {
  tests.add("validate_columns: an order", [&] {
    Lists lists({4}, 2);
    lists.counts.fill(0);
    const auto expect = [&](std::initializer_list<int> entries, const std::string& expected) {
      const Tensor order(DType::kInt32, {3, 4});
      order.fill(-1);
      int64_t i = 0;
      for (const int entry : entries) order.set_flat(i++, entry);
      ColumnLists columns = lists.lists();
      columns.order = order;
      const std::string got =
          message_of<InvalidArgument>([&] { chipmunk::validate_columns(columns, 10, Context{}); });
      const std::string message =
          expected.empty() ? "" : "validate_columns: columns.order: expected " + expected;
      tests.check(got == message, "expected '" + message + "', got '" + got + "'");
    };
    // Links of whole lists, of first parts and of second ones.
    const auto whole = [](int list) { return 4 * list; };
    const auto first = [](int list) { return 4 * list + 1; };
    const auto second = [](int list) { return 4 * list + 2; };
    const int a = whole(0), b = whole(1), c = whole(2), d = whole(3);
    const std::string links =
        "links 4 * list + part with lists from 0 to 4, exclusive, and parts from 0 to 2, or -1, "
        "got ";
    expect({-1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7}, "");  // as they come
    expect({c, a, -1, -1, b, -1, d, -1}, "");
    expect({a, b, c, d, -1, -1, -1, -1}, "");
    expect({d, -1, -1, -1, -1, a, b, c}, "");
    expect({a, second(3), c, -1, b, -1, first(3), -1}, "");
    expect({a, first(3), -1, -1, b, -1, -1, second(2), -1, -1, first(2), -1},
           "parts behind whole lists, second ones last, got 9 at [2, 2]");
    expect({c, 16, -1, -1, b, -1, d, -1}, links + "16 at [0, 1]");
    expect({c, 3, -1, -1, b, -1, d, -1}, links + "3 at [0, 1]");
    expect({c, a, -1, -1, -2, -1, d, -1}, links + "-2 at [1, 0]");
    expect({c, a, -1, -1, b, -1, d, c}, "every list once, got 8 at [1, 3]");  // a cycle
    expect({c, d, -1, -1, b, -1, d, -1}, "every list once, got 12 at [0, 1]");
    expect({c, a, -1, -1, -1, -1, d, -1},
           "every list once, whole or in both parts, got list 1 not at all");
    expect({c, a, -1, -1, first(1), -1, d, -1},
           "every list once, whole or in both parts, got list 1 in one part only");
    expect({c, a, second(3), -1, b, -1, d, -1},
           "every list once, whole or in both parts, got list 3 whole and in parts");
    expect({c, first(0), b, -1, -1, -1, b, -1}, "every list once, got 4 at [0, 2]");
    expect({first(0), -1, -1, -1, b},
           "parts behind whole lists, second ones last, got 4 at [1, 0]");
    expect({c, a, -1, b, -1, -1, d, -1}, "no first link after a -1, got 4 at [0, 3]");
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  add_message_tests(tests);
  add_order_tests(tests);
  return tests.run();
}
