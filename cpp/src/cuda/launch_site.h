// Where a CUDA op runs. Host C++: no CUDA header needed.
#pragma once

namespace chipmunk::cuda {

struct LaunchSite {
  int device;    // CUDA ordinal of the tensors
  void* stream;  // cudaStream_t of that device
};

}  // namespace chipmunk::cuda
