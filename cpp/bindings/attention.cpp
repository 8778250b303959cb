#include "chipmunk_kernels/attention.h"

#include <cmath>
#include <cstdint>
#include <optional>

#include "bindings/def_op.h"

namespace chipmunk::python {
namespace py = pybind11;
namespace {

using OptionalTensor = std::optional<TensorView>;
using OptionalScale = std::optional<float>;

// None: 1 / sqrt(head_dim). A q without that dimension is refused by the op.
float scale_or_default(OptionalScale scale, const TensorView& q) {
  if (scale || q.rank == 0) return scale.value_or(1.0F);
  return 1.0F / std::sqrt(static_cast<float>(q.shape[q.rank - 1]));
}

const TensorView* pointer_to(const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; }

void bind_dense(py::module_& m) {
  def_op(
      m, "dense_attention",
      [](const Context& context, const TensorView& q, const TensorView& k, const TensorView& v,
         const OptionalTensor& query_rows, OptionalScale scale, const TensorView& out,
         const TensorView& lse) {
        dense_attention(q, k, v, pointer_to(query_rows), scale_or_default(scale, q), {out, lse},
                        context);
      },
      "q", "k", "v", "query_rows", "softmax_scale", "out", "lse");

  def_op(
      m, "dense_attention_column_sums",
      [](const Context& context, const TensorView& q, const TensorView& k, const TensorView& v,
         const OptionalTensor& reference_lse, const OptionalTensor& key_weights,
         const OptionalTensor& query_rows, int32_t query_group, OptionalScale scale,
         const TensorView& out, const TensorView& lse, const TensorView& column_sums) {
        dense_attention_column_sums(q, k, v, pointer_to(reference_lse), pointer_to(key_weights),
                                    pointer_to(query_rows), query_group, scale_or_default(scale, q),
                                    {out, lse}, column_sums, context);
      },
      "q", "k", "v", "reference_lse", "key_weights", "query_rows", "query_group", "softmax_scale",
      "out", "lse", "column_sums");
}

void bind_column_sparse(py::module_& m) {
  def_op(
      m, "column_sparse_attention",
      [](const Context& context, const TensorView& q, const TensorView& k, const TensorView& v,
         const TensorView& indices, const TensorView& counts, const OptionalTensor& order,
         int32_t query_group, const OptionalTensor& rest_out, const OptionalTensor& rest_lse,
         const OptionalTensor& query_rows, OptionalScale scale, const TensorView& out,
         const TensorView& lse) {
        // A rest without one of its parts is refused by the op: its shape is [].
        AttentionPart rest;
        if (rest_out) rest.out = *rest_out;
        if (rest_lse) rest.lse = *rest_lse;
        column_sparse_attention(q, k, v, {indices, counts, query_group, order},
                                rest_out || rest_lse ? &rest : nullptr, pointer_to(query_rows),
                                scale_or_default(scale, q), {out, lse}, context);
      },
      "q", "k", "v", Shown{"indices", "columns.indices"}, Shown{"counts", "columns.counts"},
      Shown{"order", "columns.order"}, Shown{"query_group", "columns.query_group"},
      Shown{"rest_out", "rest.out"}, Shown{"rest_lse", "rest.lse"}, "query_rows", "softmax_scale",
      "out", "lse");
}

void bind_algebra(py::module_& m) {
  def_op(
      m, "merge_attention",
      [](const Context& context, const TensorView& a_out, const TensorView& a_lse,
         const TensorView& b_out, const TensorView& b_lse, const TensorView& out,
         const TensorView& lse) {
        merge_attention({a_out, a_lse}, {b_out, b_lse}, {out, lse}, context);
      },
      Shown{"a_out", "a.out"}, Shown{"a_lse", "a.lse"}, Shown{"b_out", "b.out"},
      Shown{"b_lse", "b.lse"}, "out", "lse");

  def_op(
      m, "rest_of_attention",
      [](const Context& context, const TensorView& whole_out, const TensorView& whole_lse,
         const TensorView& selected_out, const TensorView& selected_lse, const TensorView& out,
         const TensorView& lse) {
        rest_of_attention({whole_out, whole_lse}, {selected_out, selected_lse}, {out, lse},
                          context);
      },
      Shown{"whole_out", "whole.out"}, Shown{"whole_lse", "whole.lse"},
      Shown{"selected_out", "selected.out"}, Shown{"selected_lse", "selected.lse"}, "out", "lse");
}

}  // namespace

void bind_attention(py::module_& module) {
  bind_dense(module);
  bind_column_sparse(module);
  bind_algebra(module);
}

}  // namespace chipmunk::python
