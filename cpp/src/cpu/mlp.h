// CPU backend of the MLP ops: splits the work over threads.
#pragma once

#include "params/mlp.h"

namespace chipmunk::cpu {

void column_sparse_fc1(const ColumnSparseFc1Params& params, int threads);
void column_sparse_fc2(const ColumnSparseFc2Params& params, int threads);

}  // namespace chipmunk::cpu
