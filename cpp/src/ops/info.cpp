#include "chipmunk_kernels/info.h"

#include "chipmunk_kernels/version.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cuda/host/device_info.h"

namespace chipmunk {

BuildInfo build_info() {
  BuildInfo info;
  info.version = CHIPMUNK_KERNELS_VERSION;
  info.cpu_isa = cpu::kernel_table().name;
  info.cpu_isas = cpu::runnable_isas();
  info.cpu_threads = cpu::available_threads();
  info.cuda_compiled = cuda::compiled();
  info.cuda_toolkit = cuda::toolkit_version();
  info.gpus = cuda::gpus();
  return info;
}

}  // namespace chipmunk
