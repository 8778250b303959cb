// Right arguments of the attention ops, for tests of what the ops say of wrong ones.
#pragma once

#include <string>

#include "attention_problem.h"
#include "testing.h"

namespace testing {

using chipmunk::AttentionPart;
using chipmunk::Context;
using chipmunk::InvalidArgument;

// 0, 1, .., count - 1.
inline Tensor row_numbers(int64_t count) {
  Tensor rows(DType::kInt32, {count});
  for (int64_t i = 0; i < count; ++i) rows.set({i}, static_cast<double>(i));
  return rows;
}

// The arguments of every op, right as they are: a case changes one and calls.
struct Arguments {
  Tensor memory_q{DType::kFloat32, {2, 4, 100, 16}};
  Tensor memory_k{DType::kFloat32, {2, 2, 30, 16}};
  Tensor memory_v{DType::kFloat32, {2, 2, 30, 16}};
  Tensor memory_lse{DType::kFloat32, {2, 4, 100}};
  Tensor memory_sums{DType::kFloat32, {2, 4, 2, 30}};
  Tensor memory_weights{DType::kFloat32, {2, 2, 30}};
  Tensor memory_rows = row_numbers(100);
  Part memory_result{DType::kFloat32, 2, 4, 100, 16};
  Part memory_a{DType::kFloat32, 2, 4, 100, 16};
  Part memory_b{DType::kFloat32, 2, 4, 100, 16};
  Lists memory_lists{2, 4, 100, 64, 30};

  TensorView q = memory_q, k = memory_k, v = memory_v;
  TensorView reference_lse = memory_lse, column_sums = memory_sums;
  TensorView key_weights = memory_weights, query_rows = memory_rows;
  AttentionPart result = memory_result.part(), a = memory_a.part(), b = memory_b.part();
  chipmunk::ColumnLists columns = memory_lists.lists();
  int32_t query_group = 64;
  float scale = 0.25f;
  Context context;

  void dense() const { chipmunk::dense_attention(q, k, v, &query_rows, scale, result, context); }
  void sums() const {
    chipmunk::dense_attention_column_sums(q, k, v, &reference_lse, &key_weights, &query_rows,
                                          query_group, scale, result, column_sums, context);
  }
  void sparse() const {
    chipmunk::column_sparse_attention(q, k, v, columns, &a, &query_rows, scale, result, context);
  }
  void merge() const { chipmunk::merge_attention(a, b, result, context); }
  void rest_of() const { chipmunk::rest_of_attention(a, b, result, context); }
};

class Messages {
 public:
  explicit Messages(Tests& tests) : tests_(tests) {}

  // What the op says after `change` has been made to right arguments.
  template <class Error = InvalidArgument, class Change>
  void expect(void (Arguments::*op)() const, const Change& change, const std::string& message) {
    Arguments arguments;
    change(arguments);
    const std::string got = message_of<Error>([&] { (arguments.*op)(); });
    tests_.check(got == message,
                 "expected \"" + message + "\"\n          got      \"" + got + "\"");
  }

 private:
  Tests& tests_;
};

inline void to_gpu(TensorView& t, int32_t index = 0) {
  t.device = {chipmunk::DeviceType::kCuda, index};
}

// Everything on the GPU, in a dtype: nothing is read there before the checks are done.
inline void all_to_gpu(Arguments& x, DType dtype) {
  for (TensorView* t : {&x.q, &x.k, &x.v, &x.result.out, &x.a.out, &x.b.out}) {
    to_gpu(*t);
    t->dtype = dtype;
  }
  for (TensorView* t : {&x.result.lse, &x.a.lse, &x.b.lse, &x.reference_lse, &x.column_sums,
                        &x.key_weights, &x.query_rows, &x.columns.indices, &x.columns.counts}) {
    to_gpu(*t);
  }
}

}  // namespace testing
