// What each instruction set's build exports: one table of functions, nothing else. C headers only.
#pragma once

#include "cpu/kernels/attention_kernels.h"
#include "cpu/kernels/columns_kernels.h"
#include "cpu/kernels/mlp_kernels.h"

namespace chipmunk::cpu {

struct KernelTable {
  const char* name;
  AttentionKernels attention;
  MlpKernels mlp;
  ColumnsKernels columns;
};

extern const KernelTable kKernelTableBaseline;
#if defined(__x86_64__)
extern const KernelTable kKernelTableAvx2;
extern const KernelTable kKernelTableAvx512;
extern const KernelTable kKernelTableAvx512Bf16;
#endif

}  // namespace chipmunk::cpu
