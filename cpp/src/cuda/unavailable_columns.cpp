// Stands in for the CUDA backend of the columns ops where this build has none.
#include "cuda/columns.h"
#include "cuda/unavailable.h"

namespace chipmunk::cuda {
void select_columns(const SelectColumnsParams&, const LaunchSite&) {
  unavailable("select_columns");
}
void columns_from_mask(const ColumnsMaskParams&, const LaunchSite&) {
  unavailable("columns_from_mask");
}
void columns_to_mask(const ColumnsMaskParams&, const LaunchSite&) {
  unavailable("columns_to_mask");
}

}  // namespace chipmunk::cuda
