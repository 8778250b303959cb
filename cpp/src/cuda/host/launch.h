// Launches a kernel on the caller's device and stream.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "cuda/host/error.h"
#include "cuda/launch_site.h"

namespace chipmunk::cuda {

// Makes `device` current for a scope, in a thread that may never have used CUDA before: only
// setting a device gives such a thread a context, which the driver's own functions need.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    const cudaError_t status = cudaSetDevice(device);
    if (status != cudaSuccess) check_cuda(status, "cudaSetDevice(" + std::to_string(device) + ")");
    changed_ = previous_ != device;
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

struct LaunchShape {
  dim3 grid;
  dim3 block;
  int shared_bytes = 0;  // dynamic
};

// Without a device-side check: an error of the kernel itself shows in a later call of the stream's
// owner. Neither waits nor allocates, so it may be captured into a graph.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), const LaunchShape& shape,
            const LaunchSite& site, Args&&... args) {
  constexpr int kDefaultSharedBytes = 48 * 1024;
  const DeviceGuard guard(site.device);
  if (shape.shared_bytes > kDefaultSharedBytes) {
    check_cuda(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes),
        std::string(name) + ": cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(site.stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...),
             std::string(name) + ": launch");
}

}  // namespace chipmunk::cuda
