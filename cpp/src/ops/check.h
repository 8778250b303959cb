// Argument checks whose messages all read "<op>: <argument>: expected .., got ..".
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "chipmunk_kernels/error.h"
#include "chipmunk_kernels/tensor.h"

namespace chipmunk {

// A dimension with the name that messages use, e.g. {"heads", 24}.
struct NamedDim {
  std::string_view name;
  int64_t size;
};

// An argument's name in messages and the tensor; null where the caller left it out.
using NamedTensor = std::pair<std::string_view, const TensorView*>;

class ArgChecker {
 public:
  explicit ArgChecker(std::string_view op) : op_(op) {}

  // Throws InvalidArgument / Unsupported with this op's name in front.
  [[noreturn]] void fail(std::string_view argument, const std::string& expected,
                         const std::string& got) const;
  [[noreturn]] void unsupported(std::string_view argument, const std::string& message) const;

  // Names of a tensor's dimensions, for a message about its rank: "[batch, heads, keys]".
  void rank(std::string_view argument, const TensorView& t,
            std::initializer_list<std::string_view> dims) const;
  void shape(std::string_view argument, const TensorView& t,
             std::initializer_list<NamedDim> dims) const;
  void dtype(std::string_view argument, const TensorView& t,
             std::initializer_list<DType> allowed) const;
  // The dtype of another argument.
  void same_dtype(std::string_view argument, const TensorView& t, std::string_view other,
                  DType expected) const;
  void same_device(std::string_view argument, const TensorView& t, std::string_view other,
                   Device expected) const;
  void last_dim_contiguous(std::string_view argument, const TensorView& t) const;
  void contiguous(std::string_view argument, const TensorView& t) const;
  // Not null unless empty; not read-only; no two elements at one address (a stride of 0 and the
  // like).
  void readable(std::string_view argument, const TensorView& t) const;
  void writable(std::string_view argument, const TensorView& t) const;
  // No byte of `output` is one of `other`. Slices of one packed buffer side by side are told apart;
  // stranger interleavings count as overlapping.
  void no_overlap(std::string_view argument, const TensorView& output, std::string_view other_name,
                  const TensorView& other) const;

 private:
  std::string_view op_;
};

std::string to_string(const TensorView& t);  // its shape: "[2, 3, 37]"
std::string to_string(Device device);        // "cpu", "cuda:1"

}  // namespace chipmunk
