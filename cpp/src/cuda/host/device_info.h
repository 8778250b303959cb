// What the machine's GPUs are. Host C++: no CUDA header needed.
#pragma once

#include <vector>

#include "chipmunk_kernels/info.h"

namespace chipmunk::cuda {

bool compiled();
int toolkit_version();        // e.g. 13000; 0 where CUDA was left out
std::vector<GpuInfo> gpus();  // empty where there is no driver; never throws

// Below: in builds with CUDA only.

struct DeviceLimits {
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
};

// Read from the driver once per device. Throws CudaError for a device that does not exist.
DeviceLimits device_limits(int device);

// Throws Unsupported, naming `op`, unless the device runs sm_90a code.
void require_hopper(const char* op, int device);

}  // namespace chipmunk::cuda
