#include <algorithm>
#include <cstdlib>

#include "chipmunk_kernels/version.h"
#include "testing.h"

int main() {
  testing::Tests tests;
  tests.add("the forced instruction set is the one in use", [&] {
    const chipmunk::BuildInfo info = chipmunk::build_info();
    const char* forced = std::getenv("CHIPMUNK_CPU_ISA");
    if (forced != nullptr) tests.check(info.cpu_isa == forced, info.cpu_isa);
    tests.check(std::count(info.cpu_isas.begin(), info.cpu_isas.end(), info.cpu_isa) == 1,
                "the instruction set in use is listed once");
    tests.check(info.cpu_isas.front() == "baseline", "baseline runs everywhere");
  });
  tests.add("version, threads", [&] {
    const chipmunk::BuildInfo info = chipmunk::build_info();
    tests.check(info.version == CHIPMUNK_KERNELS_VERSION, info.version);
    tests.check(info.cpu_threads >= 1, "threads");
  });
  return tests.run();
}
