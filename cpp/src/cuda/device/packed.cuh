// Several elements moved as one word, and their conversion to and from float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace chipmunk::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// The distance from 1 to the next greater number.
template <class T>
inline constexpr float kEpsilon = 0.0f;
template <>
inline constexpr float kEpsilon<float> = 0x1p-23f;
template <>
inline constexpr float kEpsilon<__nv_bfloat16> = 0x1p-7f;
template <>
inline constexpr float kEpsilon<__half> = 0x1p-10f;

template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Packed {
  T v[kVector];
};

template <class T, int kVector>
__device__ Packed<T, kVector> load_packed(const T* from) {
  return *reinterpret_cast<const Packed<T, kVector>*>(from);
}

template <class T, int kVector>
__device__ void store_packed(T* to, const Packed<T, kVector>& value) {
  *reinterpret_cast<Packed<T, kVector>*>(to) = value;
}

}  // namespace chipmunk::cuda
