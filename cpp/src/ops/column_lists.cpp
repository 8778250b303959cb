#include "ops/column_lists.h"

#include <string>

#include "params/column_order.h"

namespace chipmunk {
namespace {

// "[batch=2, heads=3, groups=4, capacity]"; `last` may be empty.
std::string lists_shape(std::initializer_list<NamedDim> lead, int64_t groups, const char* last) {
  std::string out = "shape [";
  for (const NamedDim& dim : lead) {
    out += std::string(dim.name) + "=" + std::to_string(dim.size) + ", ";
  }
  return out + "groups=" + std::to_string(groups) + last + "]";
}

bool leads_with(const TensorView& t, std::initializer_list<NamedDim> lead, int64_t groups) {
  int32_t i = 0;
  for (const NamedDim& dim : lead) {
    if (t.shape[i++] != dim.size) return false;
  }
  return t.shape[i] == groups;
}

// Batch, head and group of lists whose leading dimensions are [batch, heads], or [batch].
View<int32_t, 3> lists_view(const TensorView& t, int32_t lead_rank) {
  return {.data = static_cast<int32_t*>(t.data),
          .strides = {t.strides[0], lead_rank == 2 ? t.strides[1] : 0, t.strides[lead_rank]}};
}

}  // namespace

void check_query_group(const ArgChecker& check, std::string_view argument, int32_t query_group) {
  if (query_group < 1) check.fail(argument, "a positive number", std::to_string(query_group));
}

void check_lists_memory(const ArgChecker& check, const ColumnLists& columns, std::string_view other,
                        Device device) {
  check.dtype("columns.indices", columns.indices, {DType::kInt32});
  check.dtype("columns.counts", columns.counts, {DType::kInt32});
  check.same_device("columns.indices", columns.indices, other, device);
  check.same_device("columns.counts", columns.counts, other, device);
  check.last_dim_contiguous("columns.indices", columns.indices);
  check.readable("columns.indices", columns.indices);
  check.readable("columns.counts", columns.counts);
  if (!columns.order) return;
  const TensorView& order = *columns.order;
  const int64_t lists = columns.counts.numel();
  if (order.rank != 2 || order.shape[0] != kOrderRows || order.shape[1] != lists) {
    check.fail("columns.order", "shape [3, lists=" + std::to_string(lists) + "]", to_string(order));
  }
  check.dtype("columns.order", order, {DType::kInt32});
  check.same_device("columns.order", order, other, device);
  check.contiguous("columns.order", order);
  check.readable("columns.order", order);
}

ColumnListsParams check_column_lists(const ArgChecker& check, const ColumnLists& columns,
                                     std::initializer_list<NamedDim> lead, int64_t rows,
                                     std::string_view other, Device device) {
  const TensorView& indices = columns.indices;
  const TensorView& counts = columns.counts;
  const int32_t query_group = columns.query_group;
  check_query_group(check, "columns.query_group", query_group);
  const int64_t groups = (rows + query_group - 1) / query_group;
  const int32_t lead_rank = static_cast<int32_t>(lead.size());
  if (indices.rank != lead_rank + 2 || !leads_with(indices, lead, groups)) {
    check.fail("columns.indices", lists_shape(lead, groups, ", capacity"), to_string(indices));
  }
  if (counts.rank != lead_rank + 1 || !leads_with(counts, lead, groups)) {
    check.fail("columns.counts", lists_shape(lead, groups, ""), to_string(counts));
  }
  check_lists_memory(check, columns, other, device);
  return {
      .indices = lists_view(indices, lead_rank),
      .counts = lists_view(counts, lead_rank),
      .order = columns.order ? static_cast<const int32_t*>(columns.order->data) : nullptr,
      .groups = groups,
      .capacity = indices.shape[lead_rank + 1],
      .query_group = query_group,
  };
}

void check_apart_from_lists(const ArgChecker& check, std::string_view argument,
                            const TensorView& output, const ColumnLists& columns) {
  check.no_overlap(argument, output, "columns.indices", columns.indices);
  check.no_overlap(argument, output, "columns.counts", columns.counts);
  if (columns.order) check.no_overlap(argument, output, "columns.order", *columns.order);
}

}  // namespace chipmunk
