#include "cuda/attention/column_sparse_launch.cuh"

namespace chipmunk::cuda {
template void launch_column_sparse<__half, 256, 1>(const ColumnSparseKernelParams&,
                                                   const LaunchSite&);
}  // namespace chipmunk::cuda
