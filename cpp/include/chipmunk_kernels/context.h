// Where and how an op runs. Passed with every call: the library keeps no global state.
#pragma once

#include "chipmunk_kernels/tensor.h"

namespace chipmunk {

struct Context {
  // cudaStream_t of the tensors' device for CUDA tensors; unused on the CPU.
  void* stream = nullptr;
  // Threads for the CPU backend; 0 means every core that this process may run on.
  int cpu_threads = 0;
  // Look at the arguments and return: no tensor's memory is read or written.
  bool check_only = false;
};

}  // namespace chipmunk
