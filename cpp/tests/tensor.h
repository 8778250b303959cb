// Tensors for tests: memory that is owned, elements of any dtype read and written as numbers.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

#include "chipmunk_kernels/tensor.h"

namespace testing {

using chipmunk::DType;
using chipmunk::TensorView;

// The nearest bfloat16, ties to even; NaN stays NaN.
inline uint16_t bfloat16_bits(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

// The nearest half precision number, ties to even, by its definition: slow, and not the library's.
inline uint16_t float16_bits(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000u : 0u;
  const double magnitude = std::fabs(static_cast<double>(x));
  if (std::isnan(x)) return static_cast<uint16_t>(sign | 0x7E00u);
  if (magnitude >= 65520.0) return static_cast<uint16_t>(sign | 0x7C00u);
  int exponent = magnitude > 0.0 ? std::ilogb(magnitude) : -14;
  exponent = exponent < -14 ? -14 : exponent;
  const double units = std::nearbyint(std::ldexp(magnitude, 10 - exponent));  // 1024 = 2^exponent
  // A carry out of the fraction moves into the exponent by itself.
  return static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + static_cast<int>(units)));
}

inline float float_of_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float magnitude = 0.0f;
  if (exponent == 31) {
    magnitude = fraction == 0 ? INFINITY : NAN;
  } else {
    magnitude = std::ldexp(static_cast<float>(exponent == 0 ? fraction : fraction + 1024),
                           (exponent == 0 ? 1 : exponent) - 25);
  }
  return bits & 0x8000u ? -magnitude : magnitude;
}

inline double load(const void* p, DType dtype) {
  if (dtype == DType::kBool) return *static_cast<const uint8_t*>(p);
  uint16_t half = 0;
  uint32_t word = 0;
  if (chipmunk::size_of(dtype) == 2) {
    std::memcpy(&half, p, sizeof(half));
  } else {
    std::memcpy(&word, p, sizeof(word));
  }
  if (dtype == DType::kFloat16) return float_of_float16(half);
  if (dtype == DType::kBFloat16) return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
  if (dtype == DType::kInt32) return static_cast<int32_t>(word);
  return std::bit_cast<float>(word);
}

inline void store(void* p, DType dtype, double value) {
  if (dtype == DType::kBool) {
    *static_cast<uint8_t*>(p) = value != 0.0;
  } else if (chipmunk::size_of(dtype) == 2) {
    const float x = static_cast<float>(value);
    const uint16_t half = dtype == DType::kFloat16 ? float16_bits(x) : bfloat16_bits(x);
    std::memcpy(p, &half, sizeof(half));
  } else {
    const uint32_t word = dtype == DType::kInt32
                              ? static_cast<uint32_t>(static_cast<int32_t>(value))
                              : std::bit_cast<uint32_t>(static_cast<float>(value));
    std::memcpy(p, &word, sizeof(word));
  }
}

// `value` as the dtype holds it.
inline double rounded(double value, DType dtype) {
  uint32_t word = 0;
  store(&word, dtype, value);
  return load(&word, dtype);
}

// A strided view and, if it made it, the memory under it. Copies share the memory, as views do.
class Tensor {
 public:
  // Contiguous, all bits 0.
  Tensor(DType dtype, std::initializer_list<int64_t> shape)
      : Tensor(dtype, std::vector<int64_t>(shape)) {}
  Tensor(DType dtype, const std::vector<int64_t>& shape) {
    view_.dtype = dtype;
    view_.rank = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (int32_t i = view_.rank - 1; i >= 0; --i) {
      view_.shape[i] = shape[static_cast<size_t>(i)];
      view_.strides[i] = stride;
      stride *= view_.shape[i];
    }
    memory_ = std::make_shared<std::vector<uint8_t>>(
        static_cast<size_t>(stride * chipmunk::size_of(dtype)));
    view_.data = memory_->data();
  }

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }
  DType dtype() const { return view_.dtype; }
  int64_t size(int32_t dim) const { return view_.shape[dim]; }

  // [begin, end) of one dimension, every `step`-th.
  Tensor slice(int32_t dim, int64_t begin, int64_t end, int64_t step = 1) const {
    Tensor out = *this;
    out.view_.data = static_cast<uint8_t*>(view_.data) +
                     begin * view_.strides[dim] * chipmunk::size_of(view_.dtype);
    out.view_.shape[dim] = (end - begin + step - 1) / step;
    out.view_.strides[dim] *= step;
    return out;
  }
  Tensor transposed(int32_t a, int32_t b) const {
    Tensor out = *this;
    std::swap(out.view_.shape[a], out.view_.shape[b]);
    std::swap(out.view_.strides[a], out.view_.strides[b]);
    return out;
  }
  // A copy of the elements, contiguous.
  Tensor clone() const {
    Tensor out(view_.dtype,
               std::vector<int64_t>(view_.shape.begin(), view_.shape.begin() + view_.rank));
    for (int64_t i = 0; i < view_.numel(); ++i) std::memcpy(out.flat(i), flat(i), element());
    return out;
  }

  double get(std::initializer_list<int64_t> at) const { return load(address(at), dtype()); }
  void set(std::initializer_list<int64_t> at, double value) const {
    store(address(at), dtype(), value);
  }
  double get_flat(int64_t i) const { return load(flat(i), dtype()); }
  void set_flat(int64_t i, double value) const { store(flat(i), dtype(), value); }
  void fill(double value) const {
    for (int64_t i = 0; i < view_.numel(); ++i) set_flat(i, value);
  }
  const Tensor& fill_normal(std::mt19937& random, double scale = 1.0) const {
    std::normal_distribution<double> normal(0.0, scale);
    for (int64_t i = 0; i < view_.numel(); ++i) set_flat(i, normal(random));
    return *this;
  }
  // Every element, in row-major order: for loops that `get` would make slow.
  std::vector<double> numbers() const {
    std::vector<double> out(static_cast<size_t>(view_.numel()));
    for (size_t i = 0; i < out.size(); ++i) out[i] = get_flat(static_cast<int64_t>(i));
    return out;
  }
  // The same shape and, element for element, the same bits.
  bool same_bits(const Tensor& other) const {
    if (view_.rank != other.view_.rank || view_.shape != other.view_.shape ||
        dtype() != other.dtype()) {
      return false;
    }
    for (int64_t i = 0; i < view_.numel(); ++i) {
      if (std::memcmp(flat(i), other.flat(i), element()) != 0) return false;
    }
    return true;
  }

 private:
  size_t element() const { return static_cast<size_t>(chipmunk::size_of(view_.dtype)); }
  uint8_t* address(std::initializer_list<int64_t> at) const {
    int64_t offset = 0;
    int32_t dim = 0;
    for (const int64_t i : at) offset += i * view_.strides[dim++];
    return static_cast<uint8_t*>(view_.data) + offset * chipmunk::size_of(view_.dtype);
  }
  // Element i in row-major order of the view.
  uint8_t* flat(int64_t i) const {
    int64_t offset = 0;
    for (int32_t dim = view_.rank - 1; dim >= 0; --dim) {
      offset += i % view_.shape[dim] * view_.strides[dim];
      i /= view_.shape[dim];
    }
    return static_cast<uint8_t*>(view_.data) + offset * chipmunk::size_of(view_.dtype);
  }

  std::shared_ptr<std::vector<uint8_t>> memory_;
  TensorView view_;
};

}  // namespace testing
