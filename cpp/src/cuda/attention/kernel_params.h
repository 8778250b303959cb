// Fills what dense and column-sparse attention pass to their kernels alike. On the host.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/attention/params.h"
#include "cuda/host/tensor_map.h"

namespace chipmunk::cuda {

// Tiles have `rows` query rows. There is no rest, and nothing is scheduled yet.
inline AttentionKernelParams kernel_params(const char* op, const AttentionParams& a, int rows) {
  constexpr double kLog2E = 1.4426950408889634;
  const HeadRowsShape shape{a.batch, a.query_heads, a.queries, a.head_dim};
  const int64_t tiles_per_head = (a.queries + rows - 1) / rows;
  return {.q = head_rows_map(op, "q", a.dtype, a.q, shape, 64),
          .out = head_rows_map(op, "out", a.dtype,
                               {a.out.data, a.out.strides[0], a.out.strides[1], a.out.strides[2]},
                               shape, 16),
          .attention = a,
          .rest_out = {},
          .rest_lse = {},
          .tiles = static_cast<int32_t>(a.batch * a.query_heads * tiles_per_head),
          .tiles_per_head = static_cast<int32_t>(tiles_per_head),
          .rounds = {},
          .query_heads_per_kv_head = static_cast<int32_t>(a.query_heads / a.kv_heads),
          // Never 0: a score of -inf, which masks a key, must stay -inf.
          .scale_log2 = std::max(static_cast<float>(a.softmax_scale * kLog2E),
                                 std::numeric_limits<float>::denorm_min())};
}

}  // namespace chipmunk::cuda
