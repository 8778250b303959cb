// What dense attention passes to its kernel. Needs the CUDA headers, but not nvcc.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/attention/params.h"
#include "cuda/launch_site.h"

namespace chipmunk::cuda {

struct DenseKernelParams : AttentionKernelParams {
  CUtensorMap k, v;  // [batch, kv_heads, keys, dim]; boxes of a tile's keys x 64 elements
  int32_t rows_per_tile;
  // Instead of a result, what exact column sums of the same call refer to (column_sums.cuh).
  bool keeps_references;
};

struct ColumnSumsKernelParams : DenseKernelParams {
  View<const float, 3> reference_lse;  // data null: what a first pass has kept
  View<const float, 2> key_weights;    // data null: all 1
  View<void, 3> sums;                  // [batch, query_heads, groups] of [keys]
  bool sums_are_float;
  bool sums_in_pairs;      // two neighbours of a row may be stored at once
  int32_t rows_per_group;  // a divisor of rows_per_tile
};

// One instantiation a file. Element is __nv_bfloat16 or __half.
template <class Element, int kHeadDim>
void launch_dense(const DenseKernelParams& params, const LaunchSite& site);
template <class Element, int kHeadDim>
void launch_column_sums(const ColumnSumsKernelParams& params, const LaunchSite& site);

}  // namespace chipmunk::cuda
