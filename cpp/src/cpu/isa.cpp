#include "cpu/isa.h"

#include <cstdlib>
#include <string_view>

#include "chipmunk_kernels/error.h"

namespace chipmunk::cpu {
namespace {

struct Isa {
  const KernelTable* table;
  bool runs_here;
};

// The slowest first. This file is compiled without architecture flags.
std::vector<Isa> compiled_isas() {
  std::vector<Isa> isas = {{&kKernelTableBaseline, true}};
#if defined(__x86_64__)
  isas.push_back({&kKernelTableAvx2, __builtin_cpu_supports("avx2") &&
                                         __builtin_cpu_supports("fma") &&
                                         __builtin_cpu_supports("f16c")});
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  isas.push_back({&kKernelTableAvx512, avx512});
  isas.push_back({&kKernelTableAvx512Bf16, avx512 && __builtin_cpu_supports("avx512bf16")});
#endif
  return isas;
}

const KernelTable& choose() {
  const std::vector<Isa> isas = compiled_isas();
  const char* forced = std::getenv("CHIPMUNK_CPU_ISA");
  if (forced == nullptr || *forced == '\0') {
    const KernelTable* best = nullptr;
    for (const Isa& isa : isas) {
      if (isa.runs_here) best = isa.table;
    }
    return *best;
  }
  std::string names;
  for (const Isa& isa : isas) {
    if (std::string_view(forced) == isa.table->name) {
      if (isa.runs_here) return *isa.table;
      throw Unsupported("CHIPMUNK_CPU_ISA: this machine does not run " + std::string(forced));
    }
    names += (names.empty() ? "" : " or ") + std::string(isa.table->name);
  }
  throw InvalidArgument("CHIPMUNK_CPU_ISA: expected " + names + ", got " + std::string(forced));
}

}  // namespace

const KernelTable& kernel_table() {
  static const KernelTable& table = choose();
  return table;
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : compiled_isas()) {
    if (isa.runs_here) names.emplace_back(isa.table->name);
  }
  return names;
}

}  // namespace chipmunk::cpu
