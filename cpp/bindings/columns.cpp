#include "chipmunk_kernels/columns.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/borrowed_tensor.h"

namespace chipmunk::python {
namespace py = pybind11;
using namespace pybind11::literals;
namespace {

ColumnLists borrow_lists(Loan& loan, py::handle indices, py::handle counts) {
  return {.indices = loan.borrow("columns.indices", indices),
          .counts = loan.borrow("columns.counts", counts)};
}

// The signed 64 bits that torch passes as they are; a fresh draw from Python's `random` if there
// are none and they matter.
uint64_t seed_or_draw(std::optional<int64_t> seed, double random_fraction) {
  if (seed) return static_cast<uint64_t>(*seed);
  if (!(random_fraction > 0)) return 0;
  return py::module_::import("random").attr("getrandbits")(64).cast<uint64_t>();
}

}  // namespace

void bind_columns(py::module_& m) {
  m.def(
      "select_columns",
      [](py::handle scores, py::handle always, std::optional<int64_t> count,
         std::optional<double> mass, int64_t min_count, std::optional<int64_t> max_count,
         double random_fraction, std::optional<int64_t> seed, py::handle indices, py::handle counts,
         int cpu_threads, OptionalStream stream) {
        Loan loan("select_columns", stream);
        const TensorView scores_view = loan.borrow("scores", scores);
        const auto always_view = loan.borrow_optional("always", always);
        const ColumnSelection selection{.count = count,
                                        .mass = mass,
                                        .min_count = min_count,
                                        .max_count = max_count,
                                        .random_fraction = random_fraction,
                                        .seed = seed_or_draw(seed, random_fraction)};
        const ColumnLists columns = borrow_lists(loan, indices, counts);
        loan.run(cpu_threads, [&](const Context& context) {
          select_columns(scores_view, always_view ? &*always_view : nullptr, selection, columns,
                         context);
        });
      },
      "scores"_a, "always"_a, "count"_a, "mass"_a, "min_count"_a, "max_count"_a,
      "random_fraction"_a, "seed"_a, "indices"_a, "counts"_a, "cpu_threads"_a = 0,
      "stream"_a = py::none());

  m.def(
      "columns_from_mask",
      [](py::handle mask, py::handle indices, py::handle counts, int cpu_threads,
         OptionalStream stream) {
        Loan loan("columns_from_mask", stream);
        const TensorView mask_view = loan.borrow("mask", mask);
        const ColumnLists columns = borrow_lists(loan, indices, counts);
        loan.run(cpu_threads,
                 [&](const Context& context) { columns_from_mask(mask_view, columns, context); });
      },
      "mask"_a, "indices"_a, "counts"_a, "cpu_threads"_a = 0, "stream"_a = py::none());

  m.def(
      "columns_to_mask",
      [](py::handle indices, py::handle counts, py::handle mask, int cpu_threads,
         OptionalStream stream) {
        Loan loan("columns_to_mask", stream);
        const ColumnLists columns = borrow_lists(loan, indices, counts);
        const TensorView mask_view = loan.borrow("mask", mask);
        loan.run(cpu_threads,
                 [&](const Context& context) { columns_to_mask(columns, mask_view, context); });
      },
      "indices"_a, "counts"_a, "mask"_a, "cpu_threads"_a = 0, "stream"_a = py::none());

  m.def(
      "validate_columns",
      [](py::handle indices, py::handle counts, int64_t n, int cpu_threads) {
        Loan loan("validate_columns", std::nullopt);
        const ColumnLists columns = borrow_lists(loan, indices, counts);
        loan.run(cpu_threads,
                 [&](const Context& context) { validate_columns(columns, n, context); });
      },
      "indices"_a, "counts"_a, "n"_a, "cpu_threads"_a = 0);
}

}  // namespace chipmunk::python
