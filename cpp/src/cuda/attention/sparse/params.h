// What column-sparse attention passes to its kernel. Needs the CUDA headers, but not nvcc.
#pragma once

#include <cstdint>

#include "cuda/attention/params.h"
#include "cuda/launch_site.h"

namespace chipmunk::cuda {

struct ColumnSparseKernelParams : AttentionKernelParams {
  ColumnListsParams columns;
  int32_t tiles_per_group;
  int32_t k_row_bytes, v_row_bytes, rest_row_bytes;
};

// One instantiation a file. Element is __nv_bfloat16 or __half.
template <class Element, int kHeadDim, int kRowBlocks>
void launch_column_sparse(const ColumnSparseKernelParams& params, const LaunchSite& site);

}  // namespace chipmunk::cuda
