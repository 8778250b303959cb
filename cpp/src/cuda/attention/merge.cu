// merge_attention and rest_of_attention: the softmax algebra of two parts. Eight lanes share a row.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "cuda/attention.h"
#include "cuda/device/packed.cuh"
#include "cuda/host/device_info.h"
#include "cuda/host/launch.h"

namespace chipmunk::cuda {
namespace combine {

constexpr int kThreads = 256;
constexpr int kLanesPerRow = 8;
constexpr int kRowsPerBlock = kThreads / kLanesPerRow;

// How a row of the result follows from the rows of a and b; a factor of 0 keeps NaN and infinity
// out.
struct Weights {
  float a, b, lse;
};

__device__ float scaled(float factor, float x) { return factor == 0.0f ? 0.0f : factor * x; }

struct Merge {
  template <class T>
  static __device__ Weights weights(float a, float b) {
    if (a == -INFINITY && b == -INFINITY) return {0.0f, 0.0f, -INFINITY};
    const float top = a >= b ? a : b, low = a >= b ? b : a;  // NaN ends in one of them
    // Not by exp(a - lse): the rounding of a large lse would show in the weights.
    const float ratio = expf(low - top);
    const float of_top = 1.0f / (1.0f + ratio), of_low = ratio * of_top;
    const float lse = top + log1pf(ratio);
    return {a >= b ? of_top : of_low, a >= b ? of_low : of_top, lse};
  }
  static __device__ float apply(const Weights& w, float a, float b) {
    return scaled(w.a, a) + scaled(w.b, b);
  }
};

// Given the whole and what is selected of it. With w = exp(selected - whole): lse = whole + log(1 -
// w), out = whole + (whole - selected) w / (1 - w). Where 1 - w is so small that the difference of
// two rounded outputs is noise, out is the whole's.
struct RestOf {
  template <class T>
  static __device__ Weights weights(float whole, float selected) {
    const float left = selected == -INFINITY ? 1.0f : -expm1f(selected - whole);
    if (whole == -INFINITY || left <= 0.0f) return {0.0f, 0.0f, -INFINITY};
    const bool usable = left < 1.0f && left >= kEpsilon<T> / 16.0f;
    return {1.0f, usable ? (1.0f - left) / left : 0.0f, whole + logf(left)};
  }
  static __device__ float apply(const Weights& w, float whole, float selected) {
    return scaled(w.a, whole) + scaled(w.b, whole - selected);
  }
};

}  // namespace combine

template <class Rule, class T, int kVector>
__global__ void __launch_bounds__(combine::kThreads)
    combine_attention_sm90(const __grid_constant__ CombineAttentionParams p) {
  using namespace combine;
  const int lane = threadIdx.x % kLanesPerRow;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kLanesPerRow;
  for (int64_t bh = blockIdx.y; bh < p.batch * p.heads; bh += gridDim.y) {
    const int64_t batch = bh / p.heads, head = bh % p.heads;
    if (row >= p.queries) continue;
    const Weights weights =
        Rule::template weights<T>(p.a_lse.data[p.a_lse.offset(batch, head, row)],
                                  p.b_lse.data[p.b_lse.offset(batch, head, row)]);
    if (lane == 0) p.lse.data[p.lse.offset(batch, head, row)] = weights.lse;
    const T* a = static_cast<const T*>(p.a_out.data) + p.a_out.offset(batch, head, row);
    const T* b = static_cast<const T*>(p.b_out.data) + p.b_out.offset(batch, head, row);
    T* out = static_cast<T*>(p.out.data) + p.out.offset(batch, head, row);
    for (int d = lane * kVector; d < p.head_dim; d += kLanesPerRow * kVector) {
      const Packed<T, kVector> x = load_packed<T, kVector>(a + d);
      const Packed<T, kVector> y = load_packed<T, kVector>(b + d);
      Packed<T, kVector> z;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        z.v[i] = from_float<T>(Rule::apply(weights, to_float(x.v[i]), to_float(y.v[i])));
      }
      store_packed(out + d, z);
    }
  }
}

namespace combine {

// Whether every row starts on a 16-byte boundary.
template <class Rows>
bool rows_aligned(const Rows& rows, int64_t elements) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.strides[0] % elements == 0 &&
         rows.strides[1] % elements == 0 && rows.strides[2] % elements == 0;
}

template <class Rule, class T>
void run(const char* op, const CombineAttentionParams& p, const LaunchSite& site) {
  require_hopper(op, site.device);
  if (p.batch * p.heads * p.queries == 0) return;
  constexpr int kVector = 16 / sizeof(T);
  constexpr int64_t kMaxGridY = 65535;
  const bool vector = p.head_dim % kVector == 0 && rows_aligned(p.a_out, kVector) &&
                      rows_aligned(p.b_out, kVector) && rows_aligned(p.out, kVector);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>((p.queries + kRowsPerBlock - 1) / kRowsPerBlock),
                   static_cast<unsigned>(std::min(p.batch * p.heads, kMaxGridY))),
      .block = dim3(kThreads)};
  launch(op, vector ? combine_attention_sm90<Rule, T, kVector> : combine_attention_sm90<Rule, T, 1>,
         shape, site, p);
}

template <class Rule>
void run(const char* op, const CombineAttentionParams& p, const LaunchSite& site) {
  switch (p.dtype) {
    case DType::kBFloat16:
      return run<Rule, __nv_bfloat16>(op, p, site);
    case DType::kFloat16:
      return run<Rule, __half>(op, p, site);
    default:
      return run<Rule, float>(op, p, site);
  }
}

}  // namespace combine

void merge_attention(const CombineAttentionParams& params, const LaunchSite& site) {
  combine::run<combine::Merge>("merge_attention", params, site);
}

void rest_of_attention(const CombineAttentionParams& params, const LaunchSite& site) {
  combine::run<combine::RestOf>("rest_of_attention", params, site);
}

}  // namespace chipmunk::cuda
