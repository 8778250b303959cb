// What the machine's GPUs are. Host C++: no CUDA header needed.
#pragma once

#include <vector>

#include "chipmunk_kernels/info.h"

namespace chipmunk::cuda {

bool compiled();
int toolkit_version();        // e.g. 13000; 0 where CUDA was left out
std::vector<GpuInfo> gpus();  // empty where there is no driver; never throws

}  // namespace chipmunk::cuda
