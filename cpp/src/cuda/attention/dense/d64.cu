#include "cuda/attention/dense/launch.cuh"

namespace chipmunk::cuda {

template void launch_dense<__nv_bfloat16, 64>(const DenseKernelParams&, const LaunchSite&);
template void launch_dense<__half, 64>(const DenseKernelParams&, const LaunchSite&);
template void launch_column_sums<__nv_bfloat16, 64>(const ColumnSumsKernelParams&,
                                                    const LaunchSite&);
template void launch_column_sums<__half, 64>(const ColumnSumsKernelParams&, const LaunchSite&);

}  // namespace chipmunk::cuda
