#include "chipmunk_kernels/mlp.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/bind.h"
#include "bindings/borrowed_tensor.h"
#include "chipmunk_kernels/error.h"

namespace chipmunk::python {
namespace py = pybind11;
using namespace pybind11::literals;
namespace {

constexpr std::array<std::pair<std::string_view, Activation>, 6> kActivations{{
    {"gelu_tanh", Activation::kGeluTanh},
    {"gelu", Activation::kGelu},
    {"silu", Activation::kSilu},
    {"relu", Activation::kRelu},
    {"swiglu", Activation::kSwiglu},
    {"geglu", Activation::kGeglu},
}};

Activation activation_named(const char* op, std::string_view name) {
  std::string names;
  for (const auto& [known, activation] : kActivations) {
    if (known == name) return activation;
    names += (names.empty() ? "" : ", ") + std::string(known);
  }
  throw InvalidArgument(std::string(op) + ": activation: expected one of " + names + ", got " +
                        std::string(name));
}

ColumnLists borrow_lists(Loan& loan, py::handle indices, py::handle counts) {
  return {loan.borrow("columns.indices", indices), loan.borrow("columns.counts", counts),
          kMlpQueryGroup};
}

void bind_whole(py::module_& m) {
  m.def(
      "column_sparse_mlp",
      [](py::handle x, py::handle w1, py::handle b1, py::handle w2t, py::handle indices,
         py::handle counts, std::string_view activation, py::handle activation_cache,
         py::handle packed_delta, py::handle out, int cpu_threads, OptionalStream stream) {
        Loan loan("column_sparse_mlp", stream);
        const TensorView x_view = loan.borrow("x", x);
        const TensorView w1_view = loan.borrow("w1", w1);
        const auto b1_view = loan.borrow_optional("b1", b1);
        const TensorView w2t_view = loan.borrow("w2t", w2t);
        const ColumnLists columns = borrow_lists(loan, indices, counts);
        const Activation kind = activation_named("column_sparse_mlp", activation);
        const MlpCache cache{loan.borrow("cache.activations", activation_cache),
                             loan.borrow("cache.output", out)};
        const TensorView delta_view = loan.borrow("packed_delta", packed_delta);
        loan.run(cpu_threads, [&](const Context& context) {
          column_sparse_mlp(x_view, w1_view, b1_view ? &*b1_view : nullptr, w2t_view, columns, kind,
                            cache, delta_view, context);
        });
      },
      "x"_a, "w1"_a, "b1"_a, "w2t"_a, "indices"_a, "counts"_a, "activation"_a, "activation_cache"_a,
      "packed_delta"_a, "out"_a, "cpu_threads"_a = 0, "stream"_a = py::none());
}

}  // namespace

void bind_mlp(py::module_& m) {
  m.attr("MLP_QUERY_GROUP") = kMlpQueryGroup;
  bind_whole(m);

  m.def(
      "column_sparse_fc1",
      [](py::handle x, py::handle w1, py::handle b1, py::handle indices, py::handle counts,
         std::string_view activation, py::handle activation_cache, py::handle packed_delta,
         int cpu_threads, OptionalStream stream) {
        Loan loan("column_sparse_fc1", stream);
        const TensorView x_view = loan.borrow("x", x);
        const TensorView w1_view = loan.borrow("w1", w1);
        const auto b1_view = loan.borrow_optional("b1", b1);
        const ColumnLists columns = borrow_lists(loan, indices, counts);
        const Activation kind = activation_named("column_sparse_fc1", activation);
        const TensorView cache_view = loan.borrow("activation_cache", activation_cache);
        const TensorView delta_view = loan.borrow("packed_delta", packed_delta);
        loan.run(cpu_threads, [&](const Context& context) {
          column_sparse_fc1(x_view, w1_view, b1_view ? &*b1_view : nullptr, columns, kind,
                            cache_view, delta_view, context);
        });
      },
      "x"_a, "w1"_a, "b1"_a, "indices"_a, "counts"_a, "activation"_a, "activation_cache"_a,
      "packed_delta"_a, "cpu_threads"_a = 0, "stream"_a = py::none());

  m.def(
      "column_sparse_fc2",
      [](py::handle packed_delta, py::handle w2t, py::handle indices, py::handle counts,
         py::handle out, int cpu_threads, OptionalStream stream) {
        Loan loan("column_sparse_fc2", stream);
        const TensorView delta_view = loan.borrow("packed_delta", packed_delta);
        const TensorView w2t_view = loan.borrow("w2t", w2t);
        const ColumnLists columns = borrow_lists(loan, indices, counts);
        const TensorView out_view = loan.borrow("out", out);
        loan.run(cpu_threads, [&](const Context& context) {
          column_sparse_fc2(delta_view, w2t_view, columns, out_view, context);
        });
      },
      "packed_delta"_a, "w2t"_a, "indices"_a, "counts"_a, "out"_a, "cpu_threads"_a = 0,
      "stream"_a = py::none());
}

}  // namespace chipmunk::python
