#include "cpu/kernels/kernel_table.h"
#include "cpu/kernels/vector.h"
// The loops below see this file's instruction set through the macros of vector.h.
#include "cpu/kernels/attention.inl"
#include "cpu/kernels/columns.inl"
#include "cpu/kernels/mlp.inl"

namespace chipmunk::cpu {

extern const KernelTable kKernelTableAvx512Bf16 = {"avx512_bf16", kAttentionKernels, kMlpKernels,
                                                   kColumnsKernels};

}  // namespace chipmunk::cpu
