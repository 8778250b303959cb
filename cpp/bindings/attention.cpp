#include "chipmunk_kernels/attention.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "bindings/bind.h"
#include "bindings/borrowed_tensor.h"
#include "chipmunk_kernels/error.h"

namespace chipmunk::python {
namespace py = pybind11;
using namespace pybind11::literals;
namespace {

using OptionalScale = std::optional<float>;

// None: 1 / sqrt(head_dim). A q without that dimension is refused by the op.
float scale_or_default(OptionalScale scale, const TensorView& q) {
  if (scale || q.rank == 0) return scale.value_or(1.0F);
  return 1.0F / std::sqrt(static_cast<float>(q.shape[q.rank - 1]));
}

// Python's numbers are wider than the ops'; whether this one is positive, they check themselves.
int32_t to_int32(const char* op, const char* argument, int64_t number) {
  const auto narrow = static_cast<int32_t>(number);
  if (narrow == number) return narrow;
  throw InvalidArgument(std::string(op) + ": " + argument +
                        ": expected a positive number below 2^31, got " + std::to_string(number));
}

void bind_dense(py::module_& m) {
  m.def(
      "dense_attention",
      [](py::handle q, py::handle k, py::handle v, OptionalScale softmax_scale, py::handle out,
         py::handle lse, int cpu_threads, OptionalStream stream) {
        Loan loan("dense_attention", stream);
        const TensorView q_view = loan.borrow("q", q);
        const TensorView k_view = loan.borrow("k", k);
        const TensorView v_view = loan.borrow("v", v);
        const AttentionPart result{loan.borrow("out", out), loan.borrow("lse", lse)};
        loan.run(cpu_threads, [&](const Context& context) {
          dense_attention(q_view, k_view, v_view, scale_or_default(softmax_scale, q_view), result,
                          context);
        });
      },
      "q"_a, "k"_a, "v"_a, "softmax_scale"_a, "out"_a, "lse"_a, "cpu_threads"_a = 0,
      "stream"_a = py::none());

  m.def(
      "dense_attention_column_sums",
      [](py::handle q, py::handle k, py::handle v, py::handle reference_lse, int64_t query_group,
         OptionalScale softmax_scale, py::handle out, py::handle lse, py::handle column_sums,
         int cpu_threads, OptionalStream stream) {
        Loan loan("dense_attention_column_sums", stream);
        const TensorView q_view = loan.borrow("q", q);
        const TensorView k_view = loan.borrow("k", k);
        const TensorView v_view = loan.borrow("v", v);
        const auto reference = loan.borrow_optional("reference_lse", reference_lse);
        const AttentionPart result{loan.borrow("out", out), loan.borrow("lse", lse)};
        const TensorView sums = loan.borrow("column_sums", column_sums);
        const int32_t group = to_int32("dense_attention_column_sums", "query_group", query_group);
        loan.run(cpu_threads, [&](const Context& context) {
          dense_attention_column_sums(q_view, k_view, v_view, reference ? &*reference : nullptr,
                                      group, scale_or_default(softmax_scale, q_view), result, sums,
                                      context);
        });
      },
      "q"_a, "k"_a, "v"_a, "reference_lse"_a, "query_group"_a, "softmax_scale"_a, "out"_a, "lse"_a,
      "column_sums"_a, "cpu_threads"_a = 0, "stream"_a = py::none());
}

void bind_column_sparse(py::module_& m) {
  m.def(
      "column_sparse_attention",
      [](py::handle q, py::handle k, py::handle v, py::handle indices, py::handle counts,
         int64_t query_group, py::handle rest_out, py::handle rest_lse, OptionalScale softmax_scale,
         py::handle out, py::handle lse, int cpu_threads, OptionalStream stream) {
        Loan loan("column_sparse_attention", stream);
        const TensorView q_view = loan.borrow("q", q);
        const TensorView k_view = loan.borrow("k", k);
        const TensorView v_view = loan.borrow("v", v);
        const ColumnLists columns{
            loan.borrow("columns.indices", indices), loan.borrow("columns.counts", counts),
            to_int32("column_sparse_attention", "columns.query_group", query_group)};
        std::optional<AttentionPart> rest;
        if (!rest_out.is_none()) {
          rest = {loan.borrow("rest.out", rest_out), loan.borrow("rest.lse", rest_lse)};
        }
        const AttentionPart result{loan.borrow("out", out), loan.borrow("lse", lse)};
        loan.run(cpu_threads, [&](const Context& context) {
          column_sparse_attention(q_view, k_view, v_view, columns, rest ? &*rest : nullptr,
                                  scale_or_default(softmax_scale, q_view), result, context);
        });
      },
      "q"_a, "k"_a, "v"_a, "indices"_a, "counts"_a, "query_group"_a, "rest_out"_a, "rest_lse"_a,
      "softmax_scale"_a, "out"_a, "lse"_a, "cpu_threads"_a = 0, "stream"_a = py::none());
}

void bind_algebra(py::module_& m) {
  m.def(
      "merge_attention",
      [](py::handle a_out, py::handle a_lse, py::handle b_out, py::handle b_lse, py::handle out,
         py::handle lse, int cpu_threads, OptionalStream stream) {
        Loan loan("merge_attention", stream);
        const AttentionPart a{loan.borrow("a.out", a_out), loan.borrow("a.lse", a_lse)};
        const AttentionPart b{loan.borrow("b.out", b_out), loan.borrow("b.lse", b_lse)};
        const AttentionPart result{loan.borrow("out", out), loan.borrow("lse", lse)};
        loan.run(cpu_threads,
                 [&](const Context& context) { merge_attention(a, b, result, context); });
      },
      "a_out"_a, "a_lse"_a, "b_out"_a, "b_lse"_a, "out"_a, "lse"_a, "cpu_threads"_a = 0,
      "stream"_a = py::none());

  m.def(
      "rest_of_attention",
      [](py::handle whole_out, py::handle whole_lse, py::handle selected_out,
         py::handle selected_lse, py::handle out, py::handle lse, int cpu_threads,
         OptionalStream stream) {
        Loan loan("rest_of_attention", stream);
        const AttentionPart whole{loan.borrow("whole.out", whole_out),
                                  loan.borrow("whole.lse", whole_lse)};
        const AttentionPart selected{loan.borrow("selected.out", selected_out),
                                     loan.borrow("selected.lse", selected_lse)};
        const AttentionPart result{loan.borrow("out", out), loan.borrow("lse", lse)};
        loan.run(cpu_threads, [&](const Context& context) {
          rest_of_attention(whole, selected, result, context);
        });
      },
      "whole_out"_a, "whole_lse"_a, "selected_out"_a, "selected_lse"_a, "out"_a, "lse"_a,
      "cpu_threads"_a = 0, "stream"_a = py::none());
}

}  // namespace

void bind_attention(py::module_& module) {
  bind_dense(module);
  bind_column_sparse(module);
  bind_algebra(module);
}

}  // namespace chipmunk::python
