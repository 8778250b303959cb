#include "chipmunk_kernels/columns.h"

#include <cstdint>
#include <optional>

#include "bindings/def_op.h"

namespace chipmunk::python {
namespace py = pybind11;
namespace {

using OptionalTensor = std::optional<TensorView>;

constexpr Shown kIndices{"indices", "columns.indices"};
constexpr Shown kCounts{"counts", "columns.counts"};
constexpr Shown kOrder{"order", "columns.order"};
constexpr Shown kQueryGroup{"query_group", "columns.query_group"};

// The signed 64 bits that torch passes as they are; a fresh draw from Python's `random` if there
// are none and they matter.
uint64_t seed_or_draw(std::optional<int64_t> seed, double random_fraction) {
  if (seed) return static_cast<uint64_t>(*seed);
  if (!(random_fraction > 0)) return 0;
  const py::gil_scoped_acquire held;
  return py::module_::import("random").attr("getrandbits")(64).cast<uint64_t>();
}

}  // namespace

void bind_columns(py::module_& m) {
  def_op(
      m, "select_columns",
      [](const Context& context, const TensorView& scores, const OptionalTensor& always,
         std::optional<int64_t> count, const OptionalTensor& count_per_list,
         std::optional<double> mass, const OptionalTensor& mass_per_list, int64_t min_count,
         std::optional<int64_t> max_count, double random_fraction, std::optional<int64_t> seed,
         int32_t query_group, const TensorView& indices, const TensorView& counts,
         const OptionalTensor& order) {
        select_columns(scores, always ? &*always : nullptr,
                       {.count = count,
                        .count_per_list = count_per_list,
                        .mass = mass,
                        .mass_per_list = mass_per_list,
                        .min_count = min_count,
                        .max_count = max_count,
                        .random_fraction = random_fraction,
                        .seed = seed_or_draw(seed, random_fraction)},
                       {indices, counts, query_group, order}, context);
      },
      "scores", "always", "count", "count_per_list", "mass", "mass_per_list", "min_count",
      "max_count", "random_fraction", "seed", kQueryGroup, kIndices, kCounts, kOrder);

  def_op(
      m, "columns_from_mask",
      [](const Context& context, const TensorView& mask, int32_t query_group,
         const TensorView& indices, const TensorView& counts, const OptionalTensor& order) {
        columns_from_mask(mask, {indices, counts, query_group, order}, context);
      },
      "mask", kQueryGroup, kIndices, kCounts, kOrder);

  def_op(
      m, "columns_to_mask",
      [](const Context& context, const TensorView& indices, const TensorView& counts,
         const TensorView& mask) {
        columns_to_mask({.indices = indices, .counts = counts}, mask, context);
      },
      kIndices, kCounts, "mask");

  def_op(
      m, "validate_columns",
      [](const Context& context, const TensorView& indices, const TensorView& counts, int64_t n,
         const OptionalTensor& order) {
        validate_columns({.indices = indices, .counts = counts, .order = order}, n, context);
      },
      kIndices, kCounts, "n", OrNone{kOrder});
}

}  // namespace chipmunk::python
