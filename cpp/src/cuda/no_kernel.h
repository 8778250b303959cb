// The one message for an op without a CUDA kernel in this build.
#pragma once

#include <string>

#include "chipmunk_kernels/error.h"

namespace chipmunk::cuda {

[[noreturn]] inline void no_kernel(const char* op) {
  throw Unsupported(std::string(op) +
                    ": this build has no CUDA kernel for it; move the arguments to the CPU");
}

}  // namespace chipmunk::cuda
