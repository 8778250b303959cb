// What column-sparse attention passes to its kernel. Needs the CUDA headers, but not nvcc.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/attention/sparse/schedule.h"
#include "cuda/launch_site.h"
#include "params/attention.h"

namespace chipmunk::cuda {

// A tile is some rows of one query group; tiles count groups first, then heads, then batches.
struct ColumnSparseKernelParams {
  // [batch, heads, queries, dim]; boxes of 64 rows x 64 elements, and of 16 x 64.
  CUtensorMap q, out;
  ColumnSparseAttentionParams op;
  int32_t tiles, tiles_per_head, tiles_per_group;
  Rounds rounds;  // of the tiles; by the launch
  int32_t query_heads_per_kv_head;
  int32_t k_row_bytes, v_row_bytes, rest_row_bytes;
  float scale_log2;
  bool has_rest;
};

// One instantiation a file. Element is __nv_bfloat16 or __half.
template <class Element, int kHeadDim, int kRowBlocks>
void launch_column_sparse(const ColumnSparseKernelParams& params, const LaunchSite& site);

}  // namespace chipmunk::cuda
