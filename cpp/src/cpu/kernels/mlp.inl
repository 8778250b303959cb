#include "cpu/kernels/activation.h"
#include "cpu/kernels/bf16.h"
#include "cpu/kernels/transpose.h"

namespace chipmunk::cpu {
namespace {

template <class Type>
inline void widen_row(const typename Type::Storage* from, int64_t count, float* to) {
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) store(to + i, Type::load(from + i));
  for (int64_t i = whole; i < count; ++i) to[i] = Type::widen(from[i]);
}

}  // namespace
}  // namespace chipmunk::cpu

#include "cpu/kernels/mlp_fc1.inl"
#include "cpu/kernels/mlp_fc2.inl"

namespace chipmunk::cpu {
namespace {

constexpr MlpKernels kMlpKernels = {
    fc1_scratch,
    fc2_scratch,
    {fc1<Float32>, fc1<BFloat16>, fc1<Float16>},
    {fc2<Float32>, fc2<BFloat16>, fc2<Float16>},
};

}  // namespace
}  // namespace chipmunk::cpu
