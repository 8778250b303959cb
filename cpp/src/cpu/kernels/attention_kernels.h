// What one instruction set's build of the attention loops offers. C headers only.
#pragma once

#include <stdint.h>

namespace chipmunk::cpu {

// Queries in a tile: 12 vectors of 16 lanes, or 4 panels of 3 vectors, which AVX-512 keeps busy.
constexpr int32_t kTileQueries = 192;

// Queries of one head that attend to the same columns.
struct AttentionTile {
  const void* q;          // [queries, head_dim]
  const void* k;          // [keys, head_dim]
  const void* v;          // [keys, head_dim]
  void* out;              // [queries, head_dim]
  float* lse;             // [queries]
  const void* rest_out;   // [queries, head_dim], or null: nothing to merge; may be `out`
  const float* rest_lse;  // [queries], may be `lse`
  int64_t q_stride, k_stride, v_stride, out_stride, lse_stride, rest_out_stride, rest_lse_stride;
  const int32_t* rows;     // [queries], of q, out, lse and the rest, or null: 0, 1, ..
  const int32_t* columns;  // [count], or null: 0, 1, .., count - 1
  int64_t count;
  int32_t queries;  // 1..kTileQueries
  int32_t head_dim;
  float softmax_scale;
  float* scratch;  // [scratch_floats(head_dim)], 64-byte aligned
};

struct AttentionColumnSums {
  const float* reference_lse;  // by the tile's rows, or null: the exact one
  int64_t reference_lse_stride;
  float* sums;  // [count] += sum over the tile's queries of exp(score - reference_lse)
};

// Two parts with the same rows, and where their combination goes.
struct AttentionRows {
  const void* a_out;  // [rows, head_dim]
  const void* b_out;  // [rows, head_dim]
  void* out;          // [rows, head_dim]
  const float* a_lse;
  const float* b_lse;
  float* lse;
  int64_t a_out_stride, b_out_stride, out_stride, a_lse_stride, b_lse_stride, lse_stride;
  int64_t rows;
  int32_t head_dim;
};

// Arrays are indexed by dtype: float32, bfloat16, float16.
struct AttentionKernels {
  int64_t (*scratch_floats)(int32_t head_dim);
  void (*attend[3])(const AttentionTile& tile);
  void (*attend_and_sum[3])(const AttentionTile& tile, const AttentionColumnSums& sums);
  void (*merge[3])(const AttentionRows& rows);
  void (*rest_of[3])(const AttentionRows& rows);
  // to[i] = from[i], rounded.
  void (*round[3])(const float* from, void* to, int64_t count);
};

}  // namespace chipmunk::cpu
