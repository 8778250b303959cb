#include "chipmunk_kernels/mlp.h"

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/def_op.h"

namespace chipmunk::python {
namespace py = pybind11;
namespace {

constexpr std::array<std::pair<std::string_view, Activation>, 6> kActivations{{
    {"gelu_tanh", Activation::kGeluTanh},
    {"gelu", Activation::kGelu},
    {"silu", Activation::kSilu},
    {"relu", Activation::kRelu},
    {"swiglu", Activation::kSwiglu},
    {"geglu", Activation::kGeglu},
}};

using OptionalTensor = std::optional<TensorView>;

constexpr Shown kIndices{"indices", "columns.indices"};
constexpr Shown kCounts{"counts", "columns.counts"};

}  // namespace

template <>
struct Parameter<Activation> {
  using Passed = std::string_view;
  static Activation from(Loan& loan, const char* argument, std::string_view name) {
    std::string names;
    for (const auto& [known, activation] : kActivations) {
      if (known == name) return activation;
      names += (names.empty() ? "" : ", ") + std::string(known);
    }
    throw InvalidArgument(std::string(loan.op()) + ": " + argument + ": expected one of " + names +
                          ", got " + std::string(name));
  }
};

void bind_mlp(py::module_& m) {
  m.attr("MLP_QUERY_GROUP") = kMlpQueryGroup;

  def_op(
      m, "column_sparse_mlp",
      [](const Context& context, const TensorView& x, const TensorView& w1,
         const OptionalTensor& b1, const TensorView& w2t, const TensorView& indices,
         const TensorView& counts, Activation activation, const TensorView& activation_cache,
         const TensorView& packed_delta, const TensorView& out) {
        column_sparse_mlp(x, w1, b1 ? &*b1 : nullptr, w2t, {indices, counts, kMlpQueryGroup},
                          activation, {activation_cache, out}, packed_delta, context);
      },
      "x", "w1", "b1", "w2t", kIndices, kCounts, "activation",
      Shown{"activation_cache", "cache.activations"}, "packed_delta", Shown{"out", "cache.output"});

  def_op(
      m, "column_sparse_fc1",
      [](const Context& context, const TensorView& x, const TensorView& w1,
         const OptionalTensor& b1, const TensorView& indices, const TensorView& counts,
         Activation activation, const TensorView& activation_cache,
         const TensorView& packed_delta) {
        column_sparse_fc1(x, w1, b1 ? &*b1 : nullptr, {indices, counts, kMlpQueryGroup}, activation,
                          activation_cache, packed_delta, context);
      },
      "x", "w1", "b1", kIndices, kCounts, "activation", "activation_cache", "packed_delta");

  def_op(
      m, "column_sparse_fc2",
      [](const Context& context, const TensorView& packed_delta, const TensorView& w2t,
         const TensorView& indices, const TensorView& counts, const TensorView& out) {
        column_sparse_fc2(packed_delta, w2t, {indices, counts, kMlpQueryGroup}, out, context);
      },
      "packed_delta", "w2t", kIndices, kCounts, "out");
}

}  // namespace chipmunk::python
