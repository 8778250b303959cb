// The loops of the column-sparse MLP, one set per instruction set. C headers only.
#pragma once

#include <stdint.h>

namespace chipmunk::cpu {

inline constexpr int kMlpGroup = 128;  // tokens of a group
// Shares of work that suit the loops' tiles: columns of a list, output channels.
inline constexpr int kFc1Tile = 6;
inline constexpr int kFc2Tile = 48;

enum class MlpActivation : uint8_t { kGeluTanh, kGelu, kSilu, kRelu };

// One group of tokens and a piece of its list.
struct Fc1Task {
  MlpActivation activation;
  bool gated;  // w1 and b1 have `hidden` more rows, the gates
  int tokens;  // of this group, 1..kMlpGroup
  int64_t channels, hidden;
  const void* x;  // [tokens, channels]
  int64_t x_row_stride;
  const void* w1;  // [hidden or 2 hidden, channels]
  int64_t w1_row_stride;
  const void* b1;  // [hidden or 2 hidden] or null
  const int32_t* list;
  int64_t count;
  void* cache;  // [hidden, tokens] from the group's first token
  int64_t cache_row_stride;
  void* delta;  // [count, kMlpGroup]
  int64_t delta_row_stride;
  float* scratch;  // [fc1_scratch(channels)], 64-byte aligned
};

// One group of tokens, its whole list, and some of the output channels.
struct Fc2Task {
  int tokens;
  int64_t channels;   // of the output, in this task
  const void* delta;  // [count, kMlpGroup]
  int64_t delta_row_stride;
  const void* w2t;  // [hidden, channels]
  int64_t w2t_row_stride;
  const int32_t* list;
  int64_t count;
  void* out;  // [tokens, channels]
  int64_t out_row_stride;
  float* scratch;  // [fc2_scratch(channels)], 64-byte aligned
};

// Arrays are indexed by dtype: float32, bfloat16, float16. Scratch sizes are in floats.
struct MlpKernels {
  int64_t (*fc1_scratch)(int64_t channels);
  int64_t (*fc2_scratch)(int64_t channels);
  void (*fc1[3])(const Fc1Task& task);
  void (*fc2[3])(const Fc2Task& task);
};

}  // namespace chipmunk::cpu
