// Chooses the instruction set of the CPU kernels at run time.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels/kernel_table.h"

namespace chipmunk::cpu {

// The best table that this machine runs, or the one that CHIPMUNK_CPU_ISA names ("baseline",
// "avx2", "avx512", "avx512_bf16"; read at the first call). Throws InvalidArgument for an unknown
// name, Unsupported for one that this machine or build lacks.
const KernelTable& kernel_table();

// Names of the tables that run here, the slowest first.
std::vector<std::string> runnable_isas();

}  // namespace chipmunk::cpu
