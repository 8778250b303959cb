#include "cuda/attention/sparse/launch.cuh"

namespace chipmunk::cuda {

using Params = ColumnSparseKernelParams;

template void launch_column_sparse<__nv_bfloat16, 128, 1>(const Params&, const LaunchSite&);
template void launch_column_sparse<__nv_bfloat16, 128, 2>(const Params&, const LaunchSite&);
template void launch_column_sparse<__nv_bfloat16, 128, 3>(const Params&, const LaunchSite&);
template void launch_column_sparse<__half, 128, 1>(const Params&, const LaunchSite&);
template void launch_column_sparse<__half, 128, 2>(const Params&, const LaunchSite&);
template void launch_column_sparse<__half, 128, 3>(const Params&, const LaunchSite&);

}  // namespace chipmunk::cuda
