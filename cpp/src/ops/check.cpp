#include "ops/check.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <span>
#include <utility>

namespace chipmunk {
namespace {

std::string join(const auto& items, auto&& text) {
  std::string out = "[";
  bool first = true;
  for (const auto& item : items) {
    if (!first) out += ", ";
    first = false;
    out += text(item);
  }
  return out + "]";
}

// Bytes from the first to one past the last element, as addresses.
std::pair<uintptr_t, uintptr_t> byte_span(const TensorView& t) {
  auto begin = reinterpret_cast<uintptr_t>(t.data);
  auto end = begin;
  for (int32_t i = 0; i < t.rank; ++i) {
    const int64_t reach = (t.shape[i] - 1) * t.strides[i] * size_of(t.dtype);
    (reach < 0 ? begin : end) += static_cast<uintptr_t>(reach);
  }
  return {begin, end + static_cast<uintptr_t>(size_of(t.dtype))};
}

// Whether two different positions may share an address. Exact for views that arise from slicing and
// transposing; a view that interleaves dimensions in stranger ways counts as overlapping.
bool overlaps_itself(const TensorView& t) {
  std::array<std::pair<int64_t, int64_t>, kMaxRank> dims;  // (|stride|, size), ascending
  int n = 0;
  for (int32_t i = 0; i < t.rank; ++i) {
    if (t.shape[i] <= 1) continue;
    const std::pair<int64_t, int64_t> dim{std::abs(t.strides[i]), t.shape[i]};
    int at = n++;
    for (; at > 0 && dim < dims[at - 1]; --at) dims[at] = dims[at - 1];
    dims[at] = dim;
  }
  int64_t reach = 0;  // largest offset that the dimensions so far can give
  for (int i = 0; i < n; ++i) {
    if (dims[i].first <= reach) return true;
    reach += dims[i].first * (dims[i].second - 1);
  }
  return false;
}

// Dimensions that step by multiples of `stride` bytes aside, the bytes that `t` covers: where they
// begin and how many they are.
std::pair<uintptr_t, int64_t> without_period(const TensorView& t, int64_t stride) {
  auto begin = reinterpret_cast<uintptr_t>(t.data);
  int64_t extent = size_of(t.dtype);
  for (int32_t i = 0; i < t.rank; ++i) {
    const int64_t step = t.strides[i] * size_of(t.dtype);
    if (t.shape[i] <= 1 || step % stride == 0) continue;
    const int64_t reach = step * (t.shape[i] - 1);
    if (reach < 0) begin += static_cast<uintptr_t>(reach);
    extent += std::abs(reach);
  }
  return {begin, extent};
}

// Whether the two are columns of one buffer side by side, such as slices of a packed projection:
// both repeat with one period, and on the circle of that length they lie apart.
bool interleaved_apart(const TensorView& a, const TensorView& b) {
  for (int32_t i = 0; i < a.rank; ++i) {
    const int64_t stride = std::abs(a.strides[i]) * size_of(a.dtype);
    if (stride == 0) continue;
    const auto [a_begin, a_extent] = without_period(a, stride);
    const auto [b_begin, b_extent] = without_period(b, stride);
    const auto distance = static_cast<int64_t>(b_begin - a_begin) % stride;
    const int64_t from_a_to_b = distance < 0 ? distance + stride : distance;
    if (from_a_to_b >= a_extent && from_a_to_b + b_extent <= stride) return true;
  }
  return false;
}

}  // namespace

std::string to_string(const TensorView& t) {
  std::string out = "[";
  for (int32_t i = 0; i < t.rank; ++i) {
    if (i > 0) out += ", ";
    out += std::to_string(t.shape[i]);
  }
  return out + "]";
}

std::string to_string(Device device) {
  if (device.type == DeviceType::kCpu) return "cpu";
  return "cuda:" + std::to_string(device.index);
}

void ArgChecker::fail(std::string_view argument, const std::string& expected,
                      const std::string& got) const {
  throw InvalidArgument(std::string(op_) + ": " + std::string(argument) + ": expected " + expected +
                        ", got " + got);
}

void ArgChecker::unsupported(std::string_view argument, const std::string& message) const {
  throw Unsupported(std::string(op_) + ": " + std::string(argument) + ": " + message);
}

void ArgChecker::rank(std::string_view argument, const TensorView& t,
                      std::initializer_list<std::string_view> dims) const {
  if (t.rank == static_cast<int32_t>(dims.size())) return;
  fail(argument, "shape " + join(dims, [](std::string_view d) { return std::string(d); }),
       to_string(t));
}

void ArgChecker::shape(std::string_view argument, const TensorView& t,
                       std::initializer_list<NamedDim> dims) const {
  bool same = t.rank == static_cast<int32_t>(dims.size());
  for (int32_t i = 0; same && i < t.rank; ++i) same = t.shape[i] == dims.begin()[i].size;
  if (same) return;
  const auto text = [](const NamedDim& d) {
    return std::string(d.name) + "=" + std::to_string(d.size);
  };
  fail(argument, "shape " + join(dims, text), to_string(t));
}

void ArgChecker::dtype(std::string_view argument, const TensorView& t,
                       std::initializer_list<DType> allowed) const {
  if (std::find(allowed.begin(), allowed.end(), t.dtype) != allowed.end()) return;
  std::string expected;
  for (const DType d : allowed)
    expected += (expected.empty() ? "" : " or ") + std::string(name_of(d));
  fail(argument, "dtype " + expected, name_of(t.dtype));
}

void ArgChecker::same_dtype(std::string_view argument, const TensorView& t, std::string_view other,
                            DType expected) const {
  if (t.dtype == expected) return;
  fail(argument, "dtype " + std::string(name_of(expected)) + " as " + std::string(other),
       name_of(t.dtype));
}

void ArgChecker::same_device(std::string_view argument, const TensorView& t, std::string_view other,
                             Device expected) const {
  if (t.device == expected) return;
  fail(argument, "device " + to_string(expected) + " as " + std::string(other),
       to_string(t.device));
}

void ArgChecker::last_dim_contiguous(std::string_view argument, const TensorView& t) const {
  const int32_t last = t.rank - 1;
  if (t.shape[last] <= 1 || t.strides[last] == 1) return;
  fail(argument, "a contiguous last dimension (stride 1)",
       "stride " + std::to_string(t.strides[last]));
}

void ArgChecker::contiguous(std::string_view argument, const TensorView& t) const {
  if (t.numel() == 0) return;
  int64_t stride = 1;
  for (int32_t i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] > 1 && t.strides[i] != stride) {
      const auto text = [](int64_t number) { return std::to_string(number); };
      fail(argument, "a contiguous array",
           "strides " + join(std::span(t.strides).first(static_cast<size_t>(t.rank)), text));
    }
    stride *= t.shape[i];
  }
}

void ArgChecker::readable(std::string_view argument, const TensorView& t) const {
  if (t.data == nullptr && t.numel() > 0) fail(argument, "data", "a null pointer");
}

void ArgChecker::writable(std::string_view argument, const TensorView& t) const {
  readable(argument, t);
  if (t.read_only) fail(argument, "a writable array", "a read-only one");
  if (t.numel() > 0 && overlaps_itself(t)) {
    fail(argument, "distinct elements at distinct addresses", "a view that overlaps itself");
  }
}

void ArgChecker::no_overlap(std::string_view argument, const TensorView& output,
                            std::string_view other_name, const TensorView& other) const {
  if (output.numel() == 0 || other.numel() == 0 || !(output.device == other.device)) return;
  const auto [begin, end] = byte_span(output);
  const auto [other_begin, other_end] = byte_span(other);
  if (begin < other_end && other_begin < end && !interleaved_apart(output, other)) {
    fail(argument, "memory apart from " + std::string(other_name), "memory that overlaps it");
  }
}

}  // namespace chipmunk
