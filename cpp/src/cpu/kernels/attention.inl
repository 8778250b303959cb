// The attention loops of one instruction set: the pieces in reading order, then the table.
#include "cpu/kernels/attention_kernels.h"
#include "cpu/kernels/bf16.h"
#include "cpu/kernels/exp2.h"
#include "cpu/kernels/transpose.h"
#include "cpu/kernels/vector.h"
// Each builds on those before it.
#include "cpu/kernels/attention_block.inl"
#include "cpu/kernels/attention_tile.inl"
// These two need the ones above.
#include "cpu/kernels/attention_combine.inl"
#include "cpu/kernels/attention_sums.inl"

namespace chipmunk::cpu {
namespace {

template <class Type>
void round_all(const float* from, void* to, int64_t count) {
  auto* const rounded = (typename Type::Storage*)to;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Type::store(rounded + i, load(from + i));
  for (; i < count; ++i) rounded[i] = Type::round(from[i]);
}

constexpr AttentionKernels kAttentionKernels = {
    scratch_floats,
    {attend<Float32>, attend<BFloat16>, attend<Float16>},
    {attend_and_sum<Float32>, attend_and_sum<BFloat16>, attend_and_sum<Float16>},
    {merge<Float32>, merge<BFloat16>, merge<Float16>},
    {rest_of<Float32>, rest_of<BFloat16>, rest_of<Float16>},
    {round_all<Float32>, round_all<BFloat16>, round_all<Float16>},
};

}  // namespace
}  // namespace chipmunk::cpu
