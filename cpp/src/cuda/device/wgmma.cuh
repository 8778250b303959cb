// Products of a warpgroup on the tensor cores, and the fences that keep the compiler off their
// registers. A product is started, and its operands and results are not to be touched before it
// has been waited for.
#pragma once

#include <cstdint>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/tensor.hpp>

namespace chipmunk::cuda {

// Keeps the compiler from moving accesses to registers across: of accumulators, or of an operand.
template <int kWords>
__device__ __forceinline__ void fence_registers(float (&words)[kWords]) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) cute::warpgroup_fence_operand(words[i]);
}
template <int kWords>
__device__ __forceinline__ void fence_registers(uint32_t (&words)[kWords]) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) cute::warpgroup_fence_operand(words[i]);
}

// C = A B, or C += A B, over kSteps steps of 16: a(_, _, k) and b(_, _, k) are what CuTe's
// partitions give, C the accumulator as `accumulator_tensor` shows it.
enum class Start { kZero, kAccumulate };
template <int kSteps, Start kStart, class Mma, class A, class B, class C>
__device__ __forceinline__ void start_product(Mma mma, const A& a, const B& b, C&& c) {
  using cute::_;
  cute::warpgroup_arrive();
  mma.accumulate_ = kStart == Start::kZero ? cute::GMMA::ScaleOut::Zero : cute::GMMA::ScaleOut::One;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    cute::gemm(mma, a(_, _, k), b(_, _, k), c);
    mma.accumulate_ = cute::GMMA::ScaleOut::One;
  }
  cute::warpgroup_commit_batch();
}

// Until all but the latest kUnderWay products have ended.
template <int kUnderWay>
__device__ __forceinline__ void wait_for_products() {
  cute::warpgroup_wait<kUnderWay>();
}

}  // namespace chipmunk::cuda
