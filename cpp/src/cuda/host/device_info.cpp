#include "cuda/host/device_info.h"

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <string>

#include "cuda/host/error.h"

namespace chipmunk::cuda {
namespace {

constexpr int kCachedDevices = 64;

int attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device),
             "cudaDeviceGetAttribute(device " + std::to_string(device) + ")");
  return value;
}

DeviceLimits read_limits(int device) {
  return {.compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                                attribute(cudaDevAttrComputeCapabilityMinor, device),
          .multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device)};
}

}  // namespace

bool compiled() { return true; }

int toolkit_version() { return CUDART_VERSION; }

std::vector<GpuInfo> gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return {};
  }
  std::vector<GpuInfo> gpus;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
      (void)cudaGetLastError();
      continue;
    }
    gpus.push_back({.name = properties.name,
                    .compute_capability_major = properties.major,
                    .compute_capability_minor = properties.minor,
                    .multiprocessors = properties.multiProcessorCount,
                    .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return gpus;
}

DeviceLimits device_limits(int device) {
  // Two threads may both read a device's limits and store the same words: harmless.
  static_assert(std::atomic<DeviceLimits>::is_always_lock_free);
  static std::array<std::atomic<DeviceLimits>, kCachedDevices> cache{};
  if (device < 0 || device >= kCachedDevices) return read_limits(device);
  DeviceLimits limits = cache[device].load(std::memory_order_relaxed);
  if (limits.multiprocessors == 0) {
    limits = read_limits(device);
    cache[device].store(limits, std::memory_order_relaxed);
  }
  return limits;
}

void require_hopper(const char* op, int device) {
  const int capability = device_limits(device).compute_capability;
  if (capability == 90) return;
  throw Unsupported(std::string(op) +
                    ": the CUDA kernels need a Hopper GPU (compute capability 9.0), but device " +
                    std::to_string(device) + " has " + std::to_string(capability / 10) + "." +
                    std::to_string(capability % 10) + "; move the arguments to the CPU");
}

}  // namespace chipmunk::cuda
