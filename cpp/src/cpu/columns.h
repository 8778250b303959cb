// CPU backend of the column ops: splits the work over threads.
#pragma once

#include "params/columns.h"

namespace chipmunk::cpu {

void select_columns(const SelectColumnsParams& params, int threads);
void columns_from_mask(const ColumnsMaskParams& params, int threads);
void columns_to_mask(const ColumnsMaskParams& params, int threads);
void order_lists(const ColumnOrderParams& params, int threads);

}  // namespace chipmunk::cpu
