#include "cuda/attention/column_sparse_launch.cuh"

namespace chipmunk::cuda {
template void launch_column_sparse<__half, 96, 3>(const ColumnSparseKernelParams&,
                                                  const LaunchSite&);
}  // namespace chipmunk::cuda
