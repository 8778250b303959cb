// The registers of a 64-row product: which word is which element, and their way into memory.
//
// Accumulator word i of a thread is of row (i >> 1) & 1 and column 8 * (i >> 2) + 2 * (lane & 3) +
// (i & 1) of the warp's 16 rows: a thread holds row lane / 4 and the eighth after it, the four
// lanes of a quad hold a row between them. Packed to 16 bits, the words are the operand A of the
// next product.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm90.hpp>
#include <cute/tensor.hpp>

#include "cuda/device/packed.cuh"

namespace chipmunk::cuda {

// threadIdx.x, but not a loop invariant to the compiler, which would keep its multiples in
// registers.
__device__ __forceinline__ uint32_t read_thread() {
  uint32_t thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Registers as CuTe sees them: kColumns columns of 64 rows.
template <int kColumns>
__device__ __forceinline__ auto accumulator_tensor(float (&words)[kColumns / 2]) {
  using namespace cute;
  return make_tensor(&words[0], make_layout(Shape<Shape<_2, _2, Int<kColumns / 8>>, _1, _1>{}));
}
// Packed words as the operand A of a product over kColumns columns, 16 a step.
template <class MmaElement, int kColumns>
__device__ __forceinline__ auto operand_tensor(uint32_t* words) {
  using namespace cute;
  return make_tensor(reinterpret_cast<MmaElement*>(words),
                     make_layout(Shape<Shape<_2, _2, _2>, _1, Int<kColumns / 16>>{}));
}

// Two floats, rounded, in one word; the first in the lower half.
template <class Element>
__device__ uint32_t pack_pair(float low, float high);
template <>
__device__ inline uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
__device__ inline uint32_t pack_pair<__half>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <class Element>
__device__ __forceinline__ float2 unpack_pair(uint32_t word) {
  Element pair[2];
  memcpy(pair, &word, sizeof(word));
  return {to_float(pair[0]), to_float(pair[1])};
}

// A warp's 16 rows in shared memory, in 128-byte-swizzled panels of 64 columns and kPanelRows rows.
template <int kPanelRows>
class SwizzledRows {
 public:
  static constexpr int kPanelBytes = kPanelRows * 128;

  __device__ __forceinline__ explicit SwizzledRows(char* rows) : rows_(rows) {
    const uint32_t lane = read_thread() % 32;  // points at a row of matrix lane / 8
    mine_ = static_cast<int>(lane % 16 * 128 + ((lane / 16 ^ lane % 8) << 4));
  }
  __device__ __forceinline__ char* data() const { return rows_; }
  // Columns 16 * i and on: word m is of the lane's row m % 2, in the accumulator's words
  // 8 * i + 2 * m and 8 * i + 2 * m + 1.
  __device__ __forceinline__ void read(int i, uint32_t (&x)[4]) const {
    cute::SM75_U32x4_LDSM_N::copy(*at(i), x[0], x[1], x[2], x[3]);
  }
  __device__ __forceinline__ void write(int i, const uint32_t (&x)[4]) const {
    cute::SM90_U32x4_STSM_N::copy(x[0], x[1], x[2], x[3], *at(i));
  }

 private:
  // By an offset: by way of an integer address the compiler would forget that this is shared
  // memory.
  __device__ __forceinline__ cute::uint128_t* at(int i) const {
    return reinterpret_cast<cute::uint128_t*>(rows_ + (mine_ ^ i % 4 << 5) + i / 4 * kPanelBytes);
  }

  char* rows_;
  int mine_;
};

}  // namespace chipmunk::cuda
