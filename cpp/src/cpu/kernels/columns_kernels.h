#pragma once

namespace chipmunk::cpu {

struct ColumnsKernels {};

}  // namespace chipmunk::cpu
