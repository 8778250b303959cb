#include "cuda/attention/sparse/launch.cuh"

namespace chipmunk::cuda {

using Params = ColumnSparseKernelParams;

template void launch_column_sparse<__nv_bfloat16, 96, 1>(const Params&, const LaunchSite&);
template void launch_column_sparse<__nv_bfloat16, 96, 2>(const Params&, const LaunchSite&);
template void launch_column_sparse<__nv_bfloat16, 96, 3>(const Params&, const LaunchSite&);
template void launch_column_sparse<__half, 96, 1>(const Params&, const LaunchSite&);
template void launch_column_sparse<__half, 96, 2>(const Params&, const LaunchSite&);
template void launch_column_sparse<__half, 96, 3>(const Params&, const LaunchSite&);

}  // namespace chipmunk::cuda
