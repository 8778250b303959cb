// Turns a failed CUDA call into a CudaError.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <string>

#include "chipmunk_kernels/error.h"

namespace chipmunk::cuda {

// Throws unless `status` is cudaSuccess. `call` names what failed: "cudaSetDevice(3)".
inline void check_cuda(cudaError_t status, const std::string& call,
                       std::source_location where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // a failure that does not stick must not show up in a later call
  throw CudaError(call + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status) +
                  " (" + where.file_name() + ":" + std::to_string(where.line()) + ")");
}

}  // namespace chipmunk::cuda
