#pragma once

namespace chipmunk::cpu {

struct AttentionKernels {};

}  // namespace chipmunk::cpu
