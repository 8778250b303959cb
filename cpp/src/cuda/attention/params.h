// What dense and column-sparse attention pass to their kernels alike. Needs the CUDA headers, but
// not nvcc.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/attention/schedule.h"
#include "params/attention.h"

namespace chipmunk::cuda {

// A tile is some rows of one query group; tiles count groups first, then heads, then batches.
struct AttentionKernelParams {
  // [batch, heads, queries, dim]; boxes of 64 rows x 64 elements, and of 16 x 64.
  CUtensorMap q, out;
  AttentionParams attention;
  View<const void, 3> rest_out;  // data null: nothing to merge
  View<const float, 3> rest_lse;
  int32_t tiles, tiles_per_head;
  Rounds rounds;  // of the tiles; by the launch
  int32_t query_heads_per_kv_head;
  float scale_log2;
};

}  // namespace chipmunk::cuda
