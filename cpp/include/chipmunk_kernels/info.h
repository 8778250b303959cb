// What this build holds and what this machine offers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "chipmunk_kernels/export.h"

namespace chipmunk {

struct GpuInfo {
  std::string name;
  int compute_capability_major = 0;
  int compute_capability_minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
};

struct BuildInfo {
  std::string version;
  std::string cpu_isa;                // the instruction set in use, e.g. "avx512"
  std::vector<std::string> cpu_isas;  // every one that is compiled in and runs here
  int cpu_threads = 1;
  bool cuda_compiled = false;
  int cuda_toolkit = 0;       // e.g. 13000; 0 without CUDA
  std::vector<GpuInfo> gpus;  // empty where there is no driver
};

CHIPMUNK_API BuildInfo build_info();

}  // namespace chipmunk
