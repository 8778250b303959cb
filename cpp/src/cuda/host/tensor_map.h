// Descriptors for the copy engine.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "params/attention.h"

namespace chipmunk::cuda {

struct HeadRowsShape {
  int64_t batch, heads, rows, dim;
};

// Boxes of `box_rows` x 64 two-byte elements in the 128-byte swizzle; what lies outside reads as 0.
// Throws Unsupported, naming `op` and `argument`, where the engine cannot take the strides.
CUtensorMap head_rows_map(const char* op, const char* argument, DType dtype,
                          const View<const void, 3>& rows, const HeadRowsShape& shape,
                          uint32_t box_rows);

}  // namespace chipmunk::cuda
