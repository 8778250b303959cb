#include "cuda/host/device_info.h"

namespace chipmunk::cuda {

bool compiled() { return false; }
int toolkit_version() { return 0; }
std::vector<GpuInfo> gpus() { return {}; }

}  // namespace chipmunk::cuda
