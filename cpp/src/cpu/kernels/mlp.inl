#include "cpu/kernels/activation.h"
#include "cpu/kernels/bf16.h"
#include "cpu/kernels/mlp_words.h"
#include "cpu/kernels/rows_ahead.h"
#include "cpu/kernels/transpose.h"
// The two halves of the MLP.
#include "cpu/kernels/mlp_fc1.inl"
#include "cpu/kernels/mlp_fc2.inl"

namespace chipmunk::cpu {
namespace {

constexpr MlpKernels kMlpKernels = {
    fc1_scratch,
    fc2_scratch,
    {fc1<FloatWords<Float32>>, fc1<BFloat16Words>, fc1<FloatWords<Float16>>},
    {fc2<FloatWords<Float32>>, fc2<BFloat16Words>, fc2<FloatWords<Float16>>},
};

}  // namespace
}  // namespace chipmunk::cpu
