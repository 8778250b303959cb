// Runs an op on the backend of its tensors' device.
#pragma once

#include "chipmunk_kernels/context.h"
#include "cuda/launch_site.h"

namespace chipmunk {

// Calls on_cpu(params, threads) or on_cuda(params, site); neither where `params` has nothing to do
// or the caller only wants its arguments checked.
template <class Params>
void run_on(Device device, const Context& context, const Params& params,
            void (*on_cpu)(const Params&, int),
            void (*on_cuda)(const Params&, const cuda::LaunchSite&)) {
  if (params.empty() || context.check_only) return;
  switch (device.type) {
    case DeviceType::kCpu:
      return on_cpu(params, context.cpu_threads);
    case DeviceType::kCuda:
      return on_cuda(params, {.device = device.index, .stream = context.stream});
  }
}

}  // namespace chipmunk
