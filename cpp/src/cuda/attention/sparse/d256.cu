#include "cuda/attention/sparse/launch.cuh"

namespace chipmunk::cuda {

using Params = ColumnSparseKernelParams;

template void launch_column_sparse<__nv_bfloat16, 256, 1>(const Params&, const LaunchSite&);
template void launch_column_sparse<__nv_bfloat16, 256, 2>(const Params&, const LaunchSite&);
template void launch_column_sparse<__half, 256, 1>(const Params&, const LaunchSite&);
template void launch_column_sparse<__half, 256, 2>(const Params&, const LaunchSite&);

}  // namespace chipmunk::cuda
