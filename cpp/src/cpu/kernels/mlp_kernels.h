#pragma once

namespace chipmunk::cpu {

struct MlpKernels {};

}  // namespace chipmunk::cpu
