#include "ops/cuda_limits.h"

#include <algorithm>
#include <limits>
#include <string>

namespace chipmunk {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// "64, 96 and 128"
std::string listed(const auto& items, auto&& text) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += i + 1 == items.size() ? " and " : ", ";
    out += text(items[i]);
  }
  return out;
}

std::string numbers(std::span<const int64_t> items) {
  return listed(items, [](int64_t number) { return std::to_string(number); });
}

bool takes(const auto& items, auto item) {
  return items.empty() || std::find(items.begin(), items.end(), item) != items.end();
}

// Of the first `dims` dimensions. A stride that is never taken may be anything.
bool any_stride(const TensorView& t, int32_t dims, auto&& condition) {
  for (int32_t i = 0; i < dims; ++i) {
    if (t.shape[i] > 1 && condition(t.strides[i] * size_of(t.dtype))) return true;
  }
  return false;
}

}  // namespace

void CudaLimitsChecker::refuse(std::string_view argument, const std::string& what,
                               const std::string& taken) const {
  check_.unsupported(argument,
                     what + " on " + to_string(device_) + "; the CUDA kernels take " + taken);
}

void CudaLimitsChecker::dtype(std::string_view argument, DType dtype) const {
  if (on_cpu() || takes(limits_.dtypes, dtype)) return;
  refuse(argument, name_of(dtype), listed(limits_.dtypes, name_of));
}

void CudaLimitsChecker::head_dim(std::string_view argument, int64_t head_dim) const {
  if (on_cpu() || takes(limits_.head_dims, head_dim)) return;
  refuse(argument, "head_dim " + std::to_string(head_dim), numbers(limits_.head_dims));
}

void CudaLimitsChecker::query_group(std::string_view argument, int64_t query_group) const {
  if (on_cpu() || takes(limits_.query_groups, query_group)) return;
  refuse(argument, std::to_string(query_group), numbers(limits_.query_groups));
}

void CudaLimitsChecker::softmax_scale(float scale) const {
  if (on_cpu() || limits_.negative_scale || scale >= 0.0f) return;
  refuse("softmax_scale", std::to_string(scale), "numbers >= 0");
}

void CudaLimitsChecker::rows(std::initializer_list<NamedTensor> tensors) const {
  if (on_cpu()) return;
  for (const auto& [argument, t] : tensors) {
    if (t == nullptr || t->numel() == 0) continue;
    const int64_t alignment = limits_.row_alignment;
    const auto off = [=](int64_t bytes) { return bytes % alignment != 0; };
    if (off(static_cast<int64_t>(reinterpret_cast<uintptr_t>(t->data))) || any_stride(*t, 3, off)) {
      refuse(argument, "rows at any address",
             "rows that start at multiples of " + std::to_string(alignment) +
                 " bytes; pass a contiguous copy");
    }
    const int64_t step = t->strides[2] * size_of(t->dtype);
    if (t->shape[2] > 1 && (step > kMaxInt32 || step < -kMaxInt32)) {
      refuse(argument, "rows " + std::to_string(step) + " bytes apart",
             "rows less than 2^31 bytes apart; pass a contiguous copy");
    }
  }
}

void CudaLimitsChecker::fits_int32(std::string_view argument, int64_t number,
                                   std::string_view what) const {
  if (on_cpu() || number <= kMaxInt32) return;
  refuse(argument, std::to_string(number) + " " + std::string(what), "fewer than 2^31");
}

}  // namespace chipmunk
