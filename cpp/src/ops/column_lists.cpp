#include "ops/column_lists.h"

#include <string>

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

void check_query_group(const ArgChecker& check, std::string_view argument, int32_t query_group,
                       Device device) {
  if (query_group < 1) check.fail(argument, "a positive number", std::to_string(query_group));
  if (device.type == DeviceType::kCpu) return;
  if (query_group > 256 || query_group % 64 != 0) {
    check.unsupported(argument, std::to_string(query_group) + " on " + to_string(device) +
                                    "; CUDA kernels take 64, 128, 192 and 256");
  }
}

ColumnListsParams check_column_lists(const ArgChecker& check, const ColumnLists& columns,
                                     std::initializer_list<NamedDim> lead, int64_t rows,
                                     std::string_view other, Device device) {
  const TensorView& indices = columns.indices;
  const TensorView& counts = columns.counts;
  const int32_t query_group = columns.query_group;
  check_query_group(check, "columns.query_group", query_group, device);
  const int64_t groups = (rows + query_group - 1) / query_group;
  const int32_t lead_rank = static_cast<int32_t>(lead.size());
  if (indices.rank != lead_rank + 2 || !leads_with(indices, lead, groups)) {
    check.fail("columns.indices", lists_shape(lead, groups, ", capacity"), to_string(indices));
  }
  if (counts.rank != lead_rank + 1 || !leads_with(counts, lead, groups)) {
    check.fail("columns.counts", lists_shape(lead, groups, ""), to_string(counts));
  }
  check.dtype("columns.indices", indices, {DType::kInt32});
  check.dtype("columns.counts", counts, {DType::kInt32});
  check.same_device("columns.indices", indices, other, device);
  check.same_device("columns.counts", counts, other, device);
  check.last_dim_contiguous("columns.indices", indices);
  check.readable("columns.indices", indices);
  check.readable("columns.counts", counts);
  return {
      .indices = lists_view(indices, lead_rank),
      .counts = lists_view(counts, lead_rank),
      .order = nullptr,
      .groups = groups,
      .capacity = indices.shape[lead_rank + 1],
      .query_group = query_group,
  };
}

}  // namespace chipmunk
