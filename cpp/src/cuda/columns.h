// CUDA backend of the column ops, asynchronous on the stream of `site`.
#pragma once

#include "cuda/launch_site.h"
#include "params/columns.h"

namespace chipmunk::cuda {

void select_columns(const SelectColumnsParams& params, const LaunchSite& site);
void columns_from_mask(const ColumnsMaskParams& params, const LaunchSite& site);
void columns_to_mask(const ColumnsMaskParams& params, const LaunchSite& site);
// Makes lists' order (ColumnLists in chipmunk_kernels/columns.h) from their counts.
void order_lists(const ColumnOrderParams& params, const LaunchSite& site);

}  // namespace chipmunk::cuda
