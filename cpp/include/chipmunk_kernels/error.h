// The three ways in which a call can fail. Each is thrown before any output is written, but for
// CudaError, which reports a failure of the CUDA runtime.
#pragma once

#include <stdexcept>

#include "chipmunk_kernels/export.h"

namespace chipmunk {

// The caller's mistake: "<op>: <argument>: expected .., got ..".
struct CHIPMUNK_API InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A valid request that this build or this machine cannot serve.
struct CHIPMUNK_API Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A failed CUDA call, with the call's name and CUDA's own text.
struct CHIPMUNK_API CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace chipmunk
