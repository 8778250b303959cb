#include "cuda/attention/dense/launch.cuh"

namespace chipmunk::cuda {

template void launch_dense<__nv_bfloat16, 96>(const DenseKernelParams&, const LaunchSite&);
template void launch_dense<__half, 96>(const DenseKernelParams&, const LaunchSite&);
template void launch_column_sums<__nv_bfloat16, 96>(const ColumnSumsKernelParams&,
                                                    const LaunchSite&);
template void launch_column_sums<__half, 96>(const ColumnSumsKernelParams&, const LaunchSite&);

}  // namespace chipmunk::cuda
