// What the CUDA backend takes: the one place that says so.
//
// A request outside these limits is valid, and the CPU serves it: checks throw Unsupported, after
// all that finds a caller's mistake. They look at tensors on a CUDA device only, and at no data.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>

#include "ops/check.h"

namespace chipmunk {

// The limits of the kernels of one op.
struct CudaLimits {
  // Empty: all that the CPU takes.
  std::span<const DType> dtypes = {};
  std::span<const int64_t> head_dims = {};
  std::span<const int64_t> query_groups = {};
  bool negative_scale = true;  // softmax_scale may be below 0
  int64_t row_alignment = 1;   // of rows of q, k, v, out and the rest, in bytes
};

namespace cuda_limits {

inline constexpr std::array kHalf{DType::kBFloat16, DType::kFloat16};
inline constexpr std::array<int64_t, 4> kHeadDims{64, 96, 128, 256};
inline constexpr std::array<int64_t, 4> kQueryGroups{64, 128, 192, 256};

inline constexpr CudaLimits kDenseAttention{
    .dtypes = kHalf, .head_dims = kHeadDims, .negative_scale = false, .row_alignment = 16};
// A group's rows are one tile's, or a part of one's: 192 rows, 128 at head dim 256.
inline constexpr std::array<int64_t, 3> kSumGroups{64, 128, 192};
constexpr CudaLimits column_sums(int64_t head_dim) {
  CudaLimits limits = kDenseAttention;
  limits.query_groups = std::span(kSumGroups).first(head_dim == 256 ? 2 : 3);
  return limits;
}
inline constexpr CudaLimits kColumnSparseAttention{.dtypes = kHalf,
                                                   .head_dims = kHeadDims,
                                                   .query_groups = kQueryGroups,
                                                   .negative_scale = false,
                                                   .row_alignment = 16};
inline constexpr CudaLimits kMlp{.dtypes = kHalf};
inline constexpr CudaLimits kColumns{};

}  // namespace cuda_limits

// The checks of one call: `device` is that of its tensors.
class CudaLimitsChecker {
 public:
  CudaLimitsChecker(const ArgChecker& check, const CudaLimits& limits, Device device)
      : check_(check), limits_(limits), device_(device) {}

  void dtype(std::string_view argument, DType dtype) const;
  void head_dim(std::string_view argument, int64_t head_dim) const;
  void query_group(std::string_view argument, int64_t query_group) const;
  void softmax_scale(float scale) const;
  // Each [batch, heads, rows, head_dim] or null: where rows start, and how far apart they are.
  void rows(std::initializer_list<NamedTensor> tensors) const;
  // Numbers that a kernel holds in 32 bits; `what` names them: "lists", "columns in a list".
  void fits_int32(std::string_view argument, int64_t number, std::string_view what) const;

 private:
  bool on_cpu() const { return device_.type == DeviceType::kCpu; }
  [[noreturn]] void refuse(std::string_view argument, const std::string& what,
                           const std::string& taken) const;

  const ArgChecker& check_;
  const CudaLimits& limits_;
  Device device_;
};

}  // namespace chipmunk
