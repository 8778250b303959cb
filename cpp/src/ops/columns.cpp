#include "chipmunk_kernels/columns.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <vector>

#include "cpu/columns.h"
#include "cuda/columns.h"
#include "ops/check.h"
#include "ops/column_lists.h"
#include "ops/cuda_limits.h"
#include "ops/dispatch.h"
#include "params/column_order.h"

namespace chipmunk {
namespace {

// `t` broadcast to the shape of `to`: trailing dimensions align, those of size 1 repeat.
TensorView broadcast_to(const ArgChecker& check, const char* argument, const TensorView& t,
                        const char* other, const TensorView& to) {
  TensorView out = t;
  out.rank = to.rank;
  out.shape = to.shape;
  out.strides = {};
  bool fits = t.rank <= to.rank;
  for (int32_t i = 0; fits && i < t.rank; ++i) {
    const int32_t at = to.rank - t.rank + i;
    fits = t.shape[i] == 1 || t.shape[i] == to.shape[at];
    if (t.shape[i] != 1) out.strides[at] = t.strides[i];
  }
  if (!fits) {
    check.fail(argument, "a shape that broadcasts to " + std::string(other) + " " + to_string(to),
               to_string(t));
  }
  return out;
}

// A tensor [*lead, groups, n] of rows: rank, column numbers that fit int32, data.
void check_rows(const ArgChecker& check, const char* argument, const TensorView& t) {
  if (t.rank < 2) check.fail(argument, "shape [*lead, groups, n]", to_string(t));
  if (t.shape[t.rank - 1] > std::numeric_limits<int32_t>::max()) {
    check.fail(argument, "fewer than 2^31 columns", to_string(t));
  }
  check.readable(argument, t);
}

// indices [*lead, groups, capacity] and counts [*lead, groups] that belong to `rows` [*lead,
// groups, n], the argument `other`.
void check_lists(const ArgChecker& check, const ColumnLists& columns, const char* other,
                 const TensorView& rows) {
  const TensorView& indices = columns.indices;
  const TensorView& counts = columns.counts;
  const int32_t lead = rows.rank - 1;
  const auto leads = [&](const TensorView& t) {
    return std::equal(rows.shape.begin(), rows.shape.begin() + lead, t.shape.begin());
  };
  TensorView lead_shape = rows;
  lead_shape.rank = lead;
  std::string expected = to_string(lead_shape);
  if (counts.rank != lead || !leads(counts)) {
    check.fail("columns.counts", "shape " + expected + " as " + other, to_string(counts));
  }
  if (indices.rank != rows.rank || !leads(indices)) {
    expected.insert(expected.size() - 1, ", capacity");
    check.fail("columns.indices", "shape " + expected + " as " + other, to_string(indices));
  }
  check_lists_memory(check, columns, other, rows.device);
}

const TensorView* pointer_to(const std::optional<TensorView>& t) { return t ? &*t : nullptr; }

// The lists as outputs: writable, apart from one another and from the inputs.
void check_lists_writable(const ArgChecker& check, const ColumnLists& columns,
                          std::initializer_list<NamedTensor> inputs) {
  const NamedTensor outputs[] = {{"columns.indices", &columns.indices},
                                 {"columns.counts", &columns.counts},
                                 {"columns.order", pointer_to(columns.order)}};
  for (const auto& [name, output] : outputs) {
    if (output != nullptr) check.writable(name, *output);
  }
  check.no_overlap("columns.indices", columns.indices, "columns.counts", columns.counts);
  for (const auto& [name, output] : outputs) {
    if (output == nullptr) continue;
    for (const auto& [other, input] : inputs) {
      if (input != nullptr) check.no_overlap(name, *output, other, *input);
    }
  }
  if (!columns.order) return;
  check.no_overlap("columns.order", *columns.order, "columns.indices", columns.indices);
  check.no_overlap("columns.order", *columns.order, "columns.counts", columns.counts);
}

void check_fraction(const ArgChecker& check, const char* argument, double fraction) {
  if (fraction >= 0.0 && fraction <= 1.0) return;  // false for NaN
  check.fail(argument, "a fraction from 0 to 1", std::to_string(fraction));
}

void check_not_negative(const ArgChecker& check, const char* argument, int64_t number) {
  if (number < 0) check.fail(argument, "a number of columns >= 0", std::to_string(number));
}

// One number for all lists, or an array of them, or neither; whether there is one.
bool check_either(const ArgChecker& check, const char* argument, bool number, const char* array,
                  bool per_list) {
  if (number && per_list) {
    check.fail(argument, std::string("only one of ") + argument + " and " + array, "both");
  }
  return number || per_list;
}

void check_selection(const ArgChecker& check, const ColumnSelection& selection, int64_t n,
                     int64_t capacity) {
  const bool by_count = check_either(check, "count", selection.count.has_value(), "count_per_list",
                                     selection.count_per_list.has_value());
  const bool by_mass = check_either(check, "mass", selection.mass.has_value(), "mass_per_list",
                                    selection.mass_per_list.has_value());
  if (by_count == by_mass) {
    check.fail("count", "exactly one of count and mass", by_count ? "both" : "neither");
  }
  if ((selection.count_per_list || selection.mass_per_list) && !selection.max_count) {
    check.fail("max_count",
               std::string("a number, as ") +
                   (selection.count_per_list ? "count_per_list" : "mass_per_list") +
                   " gives no capacity",
               "none");
  }
  if (selection.count) check_not_negative(check, "count", *selection.count);
  if (selection.mass) check_fraction(check, "mass", *selection.mass);
  check_not_negative(check, "min_count", selection.min_count);
  if (selection.max_count) {
    check_not_negative(check, "max_count", *selection.max_count);
    if (selection.min_count > *selection.max_count) {
      check.fail("min_count", "at most max_count=" + std::to_string(*selection.max_count),
                 std::to_string(selection.min_count));
    }
  }
  check_fraction(check, "random_fraction", selection.random_fraction);
  if (capacity < std::min(selection.min_count, n)) {
    check.fail("columns.indices",
               "a capacity of at least min_count=" + std::to_string(selection.min_count),
               std::to_string(capacity));
  }
}

ColumnsMaskParams mask_params(const TensorView& mask, const ColumnLists& columns) {
  return {
      .mask = rows_of(mask),
      .indices = rows_of(columns.indices),
      .counts = rows_of(columns.counts, false),
      .n = mask.shape[mask.rank - 1],
      .capacity = columns.indices.shape[columns.indices.rank - 1],
  };
}

void check_cuda(const ArgChecker& check, const ColumnLists& columns) {
  const CudaLimitsChecker limits(check, cuda_limits::kColumns, columns.counts.device);
  limits.fits_int32("columns.counts", columns.counts.numel(), "lists");
}

// Fills the lists' order where the caller wants one.
void make_order(const ColumnLists& columns, const Context& context) {
  if (!columns.order) return;
  const ColumnOrderParams params{.counts = collapsed(rows_of(columns.counts, false)),
                                 .lists = columns.counts.numel(),
                                 .capacity = columns.indices.shape[columns.indices.rank - 1],
                                 .query_group = columns.query_group,
                                 .order = static_cast<int32_t*>(columns.order->data)};
  run_on(columns.counts.device, context, params, cpu::order_lists, cuda::order_lists);
}

// "[0, 2]": the position of row `row` of `counts`.
std::string row_position(const TensorView& counts, int64_t row) {
  TensorView position = counts;
  for (int32_t i = counts.rank - 1; i >= 0; --i) {
    position.shape[i] = row % counts.shape[i];
    row /= counts.shape[i];
  }
  return to_string(position);
}

// Every list is on one chain from the first links, whole or in its two parts, and the tiles of a
// chain have ever fewer rows.
void validate_order(const ArgChecker& check, const TensorView& order) {
  const int64_t lists = order.shape[1];
  const auto* links = static_cast<const int32_t*>(order.data);
  if (lists == 0 || links[0] == kNoLink) return;  // as they come
  const auto fail = [&](const std::string& expected, int32_t link, int64_t row, int64_t list) {
    TensorView at;
    at.rank = 2;
    at.shape = {row, list};
    check.fail("columns.order", expected, std::to_string(link) + " at " + to_string(at));
  };
  std::vector<std::array<bool, 3>> taken(static_cast<size_t>(lists));
  // Follows the link at [row, list], and those behind it.
  const auto follow = [&](int64_t row, int64_t list) {
    ListPart before = ListPart::kWhole;
    for (int32_t link; (link = links[row * lists + list]) != kNoLink;) {
      if (link < 0 || list_of(link) >= lists || link % 4 == 3) {
        fail("links 4 * list + part with lists from 0 to " + std::to_string(lists) +
                 ", exclusive, and parts from 0 to 2, or -1",
             link, row, list);
      }
      if (part_of(link) < before)
        fail("parts behind whole lists, second ones last", link, row, list);
      before = part_of(link);
      bool& mine = taken[static_cast<size_t>(list_of(link))][static_cast<size_t>(before)];
      if (mine) fail("every list once", link, row, list);
      mine = true;
      row = order_row_behind(before);
      list = list_of(link);
    }
  };
  int64_t first = 0;
  for (; first < lists && links[first] != kNoLink; ++first) follow(0, first);
  for (; first < lists; ++first) {
    if (links[first] != kNoLink) fail("no first link after a -1", links[first], 0, first);
  }
  for (int64_t list = 0; list < lists; ++list) {
    const auto& [whole, first_part, second_part] = taken[static_cast<size_t>(list)];
    if (whole ? first_part || second_part : !first_part || !second_part) {
      check.fail("columns.order", "every list once, whole or in both parts",
                 "list " + std::to_string(list) +
                     (whole                       ? " whole and in parts"
                      : first_part || second_part ? " in one part only"
                                                  : " not at all"));
    }
  }
}

}  // namespace

void select_columns(const TensorView& scores, const TensorView* always,
                    const ColumnSelection& selection, const ColumnLists& columns,
                    const Context& context) {
  const ArgChecker check("select_columns");
  check_rows(check, "scores", scores);
  check.dtype("scores", scores, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
  check_lists(check, columns, "scores", scores);
  check_query_group(check, "columns.query_group", columns.query_group);
  const int64_t n = scores.shape[scores.rank - 1];
  const int64_t capacity = columns.indices.shape[columns.indices.rank - 1];
  check_selection(check, selection, n, capacity);
  SelectColumnsParams params{};
  params.scores = rows_of(scores);
  params.scores_dtype = scores.dtype;
  if (always != nullptr) {
    check.dtype("always", *always, {DType::kBool});
    check.same_device("always", *always, "scores", scores.device);
    check.readable("always", *always);
    params.always = rows_of(broadcast_to(check, "always", *always, "scores", scores));
  }
  const auto per_list = [&](const char* argument, const std::optional<TensorView>& t,
                            DType dtype) -> Rows {
    if (!t) return {};
    check.dtype(argument, *t, {dtype});
    check.same_device(argument, *t, "scores", scores.device);
    check.readable(argument, *t);
    return rows_of(broadcast_to(check, argument, *t, "columns.counts", columns.counts), false);
  };
  params.count_per_list = per_list("count_per_list", selection.count_per_list, DType::kInt32);
  params.mass_per_list = per_list("mass_per_list", selection.mass_per_list, DType::kFloat32);
  check_lists_writable(check, columns,
                       {{"scores", &scores},
                        {"always", always},
                        {"count_per_list", pointer_to(selection.count_per_list)},
                        {"mass_per_list", pointer_to(selection.mass_per_list)}});
  check_cuda(check, columns);
  params.n = n;
  params.count = selection.count.value_or(-1);
  params.mass = selection.mass.value_or(0.0);
  params.min_count = selection.min_count;
  params.max_count = std::min({n, capacity, selection.max_count.value_or(n)});
  params.random_fraction = selection.random_fraction;
  params.seed = selection.seed;
  params.indices = rows_of(columns.indices);
  params.counts = rows_of(columns.counts, false);
  params.capacity = capacity;
  run_on(scores.device, context, params, cpu::select_columns, cuda::select_columns);
  make_order(columns, context);
}

void columns_from_mask(const TensorView& mask, const ColumnLists& columns, const Context& context) {
  const ArgChecker check("columns_from_mask");
  check_rows(check, "mask", mask);
  check.dtype("mask", mask, {DType::kBool});
  check_lists(check, columns, "mask", mask);
  check_query_group(check, "columns.query_group", columns.query_group);
  check_lists_writable(check, columns, {{"mask", &mask}});
  check_cuda(check, columns);
  run_on(mask.device, context, mask_params(mask, columns), cpu::columns_from_mask,
         cuda::columns_from_mask);
  make_order(columns, context);
}

void columns_to_mask(const ColumnLists& columns, const TensorView& mask, const Context& context) {
  const ArgChecker check("columns_to_mask");
  check_rows(check, "mask", mask);
  check.dtype("mask", mask, {DType::kBool});
  check.writable("mask", mask);
  check_lists(check, columns, "mask", mask);
  check_apart_from_lists(check, "mask", mask, columns);
  check_cuda(check, columns);
  run_on(mask.device, context, mask_params(mask, columns), cpu::columns_to_mask,
         cuda::columns_to_mask);
}

void validate_columns(const ColumnLists& columns, int64_t n, const Context&) {
  const ArgChecker check("validate_columns");
  const TensorView& indices = columns.indices;
  const TensorView& counts = columns.counts;
  if (indices.rank < 2) {
    check.fail("columns.indices", "shape [*lead, groups, capacity]", to_string(indices));
  }
  check_lists(check, columns, "columns.indices", indices);
  check_not_negative(check, "n", n);
  if (indices.device.type != DeviceType::kCpu) {
    check.unsupported("columns.indices",
                      "lists on " + to_string(indices.device) +
                          " cannot be looked into; copy them to the CPU and validate there");
  }
  if (columns.order) validate_order(check, *columns.order);
  const int64_t capacity = indices.shape[indices.rank - 1];
  const Rows lists = rows_of(indices);
  const Rows list_counts = rows_of(counts, false);
  for (int64_t row = 0; row < list_counts.rows(); ++row) {
    const int32_t count = static_cast<const int32_t*>(list_counts.data)[list_counts.offset(row)];
    if (count < 0 || count > capacity) {
      check.fail("columns.counts", "counts from 0 to capacity=" + std::to_string(capacity),
                 std::to_string(count) + " at " + row_position(counts, row));
    }
    const int32_t* list = static_cast<const int32_t*>(lists.data) + lists.offset(row);
    int64_t previous = -1;
    for (int32_t i = 0; i < count; ++i) {
      const auto got = [&] {
        return std::to_string(list[i]) + " at position " + std::to_string(i) + " of list " +
               row_position(counts, row);
      };
      if (list[i] < 0 || list[i] >= n) {
        check.fail("columns.indices", "columns from 0 to n=" + std::to_string(n) + ", exclusive",
                   got());
      }
      if (list[i] <= previous) {
        check.fail("columns.indices", "ascending, unique columns",
                   got() + " after " + std::to_string(previous));
      }
      previous = list[i];
    }
  }
}

}  // namespace chipmunk
