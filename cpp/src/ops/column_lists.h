// Checks of column lists, shared by the ops that take them.
#pragma once

#include <initializer_list>
#include <string_view>

#include "chipmunk_kernels/columns.h"
#include "ops/check.h"
#include "params/columns.h"

namespace chipmunk {

// Rows that share a list: any positive number on the CPU, 64, 128, 192 or 256 on a GPU.
void check_query_group(const ArgChecker& check, std::string_view argument, int32_t query_group,
                       Device device);

// The lists of an op that runs over `rows` query rows: indices [*lead, groups, capacity] and counts
// [*lead, groups] with groups = ceil(rows / query_group), int32, on `device` (that of the argument
// `other`). `lead` is {batch, heads}, or {batch}. The lists' contents are not looked at.
ColumnListsParams check_column_lists(const ArgChecker& check, const ColumnLists& columns,
                                     std::initializer_list<NamedDim> lead, int64_t rows,
                                     std::string_view other, Device device);

}  // namespace chipmunk
