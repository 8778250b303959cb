// Checks of column lists, shared by the ops that take them.
#pragma once

#include <initializer_list>
#include <string_view>

#include "chipmunk_kernels/columns.h"
#include "ops/check.h"
#include "params/columns.h"

namespace chipmunk {

// Rows that share a list: a positive number.
void check_query_group(const ArgChecker& check, std::string_view argument, int32_t query_group);

// Of lists whose indices and counts have the right shapes: int32, on `device` (that of the argument
// `other`), memory that can be read, and an order of [3, lists] if there is one. Contents are not
// looked at.
void check_lists_memory(const ArgChecker& check, const ColumnLists& columns, std::string_view other,
                        Device device);

// The lists of an op that runs over `rows` query rows: indices [*lead, groups, capacity] and counts
// [*lead, groups] with groups = ceil(rows / query_group), int32, on `device` (that of the argument
// `other`). `lead` is {batch, heads}, or {batch}. Contents are not looked at.
ColumnListsParams check_column_lists(const ArgChecker& check, const ColumnLists& columns,
                                     std::initializer_list<NamedDim> lead, int64_t rows,
                                     std::string_view other, Device device);

// No output may share memory with the lists.
void check_apart_from_lists(const ArgChecker& check, std::string_view argument,
                            const TensorView& output, const ColumnLists& columns);

}  // namespace chipmunk
