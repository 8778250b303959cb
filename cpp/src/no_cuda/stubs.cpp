// Stands in for what src/cuda defines, in builds without CUDA.
#include "cuda/attention.h"
#include "cuda/columns.h"
#include "cuda/host/device_info.h"
#include "cuda/mlp.h"
#include "cuda/no_kernel.h"

namespace chipmunk::cuda {

bool compiled() { return false; }
int toolkit_version() { return 0; }
std::vector<GpuInfo> gpus() { return {}; }

void dense_attention(const AttentionParams&, const LaunchSite&) { no_kernel("dense_attention"); }
void dense_attention_column_sums(const AttentionColumnSumsParams&, const LaunchSite&) {
  no_kernel("dense_attention_column_sums");
}
void column_sparse_attention(const ColumnSparseAttentionParams&, const LaunchSite&) {
  no_kernel("column_sparse_attention");
}
void merge_attention(const CombineAttentionParams&, const LaunchSite&) {
  no_kernel("merge_attention");
}
void rest_of_attention(const CombineAttentionParams&, const LaunchSite&) {
  no_kernel("rest_of_attention");
}

void select_columns(const SelectColumnsParams&, const LaunchSite&) { no_kernel("select_columns"); }
void columns_from_mask(const ColumnsMaskParams&, const LaunchSite&) {
  no_kernel("columns_from_mask");
}
void columns_to_mask(const ColumnsMaskParams&, const LaunchSite&) { no_kernel("columns_to_mask"); }
void order_lists(const ColumnOrderParams&, const LaunchSite&) { no_kernel("order_lists"); }

void column_sparse_fc1(const ColumnSparseFc1Params&, const LaunchSite&) {
  no_kernel("column_sparse_fc1");
}
void column_sparse_fc2(const ColumnSparseFc2Params&, const LaunchSite&) {
  no_kernel("column_sparse_fc2");
}

}  // namespace chipmunk::cuda
