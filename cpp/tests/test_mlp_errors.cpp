// What the MLP ops say of wrong arguments, and that they write nothing then.
#include <initializer_list>
#include <string>

#include "chipmunk_kernels/mlp.h"
#include "mlp_case.h"
#include "tensor.h"
#include "testing.h"

namespace {

using chipmunk::Activation;
using chipmunk::ColumnLists;
using chipmunk::Context;
using chipmunk::InvalidArgument;
using chipmunk::Unsupported;
using testing::DType;
using testing::message_of;
using testing::Mlp;
using testing::Shape;
using testing::Tensor;
using testing::TensorView;

void add_message_tests(testing::Tests& tests) {
  const auto expect = [&](const std::string& got, const std::string& expected) {
    tests.check(got == expected, "expected '" + expected + "', got '" + got + "'");
  };
  const Shape shape{2, 200, 8, 10, 6, 4};

  tests.add("column_sparse_fc1: messages", [=] {
    const Mlp m(shape, Activation::kGelu, DType::kFloat32, 1, false);
    const Tensor old_cache = m.cache.clone();
    struct Arguments {
      TensorView x, w1, b1;
      ColumnLists columns;
      Activation activation;
      TensorView cache, delta;
    };
    const auto message = [&](auto&& change) {
      Arguments a{m.x, m.w1, m.b1, m.lists(), m.activation, m.cache, m.delta};
      change(a);
      return message_of<InvalidArgument>([&] {
        chipmunk::column_sparse_fc1(a.x, a.w1, &a.b1, a.columns, a.activation, a.cache, a.delta,
                                    Context{});
      });
    };
    using A = Arguments;
    const auto f32 = [](std::initializer_list<int64_t> dims) {
      return Tensor(DType::kFloat32, dims);
    };
    const auto i32 = [](std::initializer_list<int64_t> dims) {
      return Tensor(DType::kInt32, dims);
    };
    expect(message([&](A& a) { a.x = f32({200, 8}); }),
           "column_sparse_fc1: x: expected shape [batch, tokens, channels], got [200, 8]");
    expect(message([&](A& a) { a.x.dtype = DType::kInt32; }),
           "column_sparse_fc1: x: expected dtype float32 or bfloat16 or float16, got int32");
    expect(message([&](A& a) { a.x.strides[2] = 2; }),
           "column_sparse_fc1: x: expected a contiguous last dimension (stride 1), got stride 2");
    expect(message([&](A& a) { a.x.data = nullptr; }),
           "column_sparse_fc1: x: expected data, got a null pointer");
    expect(message([&](A& a) { a.w1 = f32({10, 7}); }),
           "column_sparse_fc1: w1: expected shape [hidden, channels=8], got [10, 7]");
    expect(message([&](A& a) {
             a.w1 = f32({9, 8});
             a.activation = Activation::kSwiglu;
           }),
           "column_sparse_fc1: w1: expected shape [2 * hidden, channels=8], got [9, 8]");
    expect(message([&](A& a) { a.w1.dtype = DType::kBFloat16; }),
           "column_sparse_fc1: w1: expected dtype float32 as x, got bfloat16");
    expect(message([&](A& a) { a.w1.device = {chipmunk::DeviceType::kCuda, 0}; }),
           "column_sparse_fc1: w1: expected device cpu as x, got cuda:0");
    expect(message([&](A& a) { a.w1.strides[1] = 0; }),
           "column_sparse_fc1: w1: expected a contiguous last dimension (stride 1), got stride 0");
    expect(message([&](A& a) { a.w1.data = nullptr; }),
           "column_sparse_fc1: w1: expected data, got a null pointer");
    expect(message([&](A& a) { a.b1 = f32({9}); }),
           "column_sparse_fc1: b1: expected shape [hidden=10], got [9]");
    expect(message([&](A& a) {
             a.activation = Activation::kGeglu;
             a.b1 = f32({5});
           }),
           "column_sparse_fc1: b1: expected shape [2 * hidden=10], got [5]");
    expect(message([&](A& a) { a.columns.query_group = 192; }),
           "column_sparse_fc1: columns.query_group: expected 128, got 192");
    expect(message([&](A& a) { a.columns.indices = i32({2, 3, 4}); }),
           "column_sparse_fc1: columns.indices: expected shape [batch=2, groups=2, capacity], got "
           "[2, 3, 4]");
    expect(message([&](A& a) { a.columns.indices = i32({1, 2, 2, 4}); }),
           "column_sparse_fc1: columns.indices: expected shape [batch=2, groups=2, capacity], got "
           "[1, 2, 2, 4]");
    expect(message([&](A& a) { a.columns.counts = i32({2}); }),
           "column_sparse_fc1: columns.counts: expected shape [batch=2, groups=2], got [2]");
    expect(message([&](A& a) { a.columns.counts = i32({2, 1}); }),
           "column_sparse_fc1: columns.counts: expected shape [batch=2, groups=2], got [2, 1]");
    expect(message([&](A& a) { a.columns.indices.dtype = DType::kFloat32; }),
           "column_sparse_fc1: columns.indices: expected dtype int32, got float32");
    expect(message([&](A& a) { a.columns.counts.dtype = DType::kBool; }),
           "column_sparse_fc1: columns.counts: expected dtype int32, got bool");
    expect(message([&](A& a) { a.columns.counts.device = {chipmunk::DeviceType::kCuda, 3}; }),
           "column_sparse_fc1: columns.counts: expected device cpu as x, got cuda:3");
    expect(message([&](A& a) { a.columns.indices.strides[2] = 3; }),
           "column_sparse_fc1: columns.indices: expected a contiguous last dimension (stride 1), "
           "got stride 3");
    expect(message([&](A& a) { a.columns.indices.data = nullptr; }),
           "column_sparse_fc1: columns.indices: expected data, got a null pointer");
    expect(message([&](A& a) { a.columns.counts.data = nullptr; }),
           "column_sparse_fc1: columns.counts: expected data, got a null pointer");
    expect(message([&](A& a) { a.cache = f32({2, 10, 199}); }),
           "column_sparse_fc1: activation_cache: expected shape [batch=2, hidden=10, tokens=200], "
           "got [2, 10, 199]");
    expect(message([&](A& a) { a.cache.read_only = true; }),
           "column_sparse_fc1: activation_cache: expected a writable array, got a read-only one");
    expect(message([&](A& a) { a.cache.strides[0] = 0; }),
           "column_sparse_fc1: activation_cache: expected distinct elements at distinct addresses, "
           "got a view that overlaps itself");
    expect(message([&](A& a) { a.w1.data = a.cache.data; }),
           "column_sparse_fc1: activation_cache: expected memory apart from w1, got memory that "
           "overlaps it");
    expect(message([&](A& a) { a.delta = f32({2, 2, 3, 128}); }),
           "column_sparse_fc1: packed_delta: expected shape [batch=2, groups=2, capacity=4, "
           "query_group=128], got [2, 2, 3, 128]");
    expect(message([&](A& a) { a.delta.dtype = DType::kFloat16; }),
           "column_sparse_fc1: packed_delta: expected dtype float32 as x, got float16");
    expect(message([&](A& a) { a.delta.data = a.x.data; }),
           "column_sparse_fc1: packed_delta: expected memory apart from x, got memory that "
           "overlaps it");
    expect(message([&](A& a) { a.b1.data = a.delta.data; }),
           "column_sparse_fc1: packed_delta: expected memory apart from b1, got memory that "
           "overlaps it");
    expect(message([&](A& a) { a.delta.data = a.cache.data; }),
           "column_sparse_fc1: packed_delta: expected memory apart from activation_cache, got "
           "memory that overlaps it");
    expect(message([&](A& a) { a.columns.counts.data = a.cache.data; }),
           "column_sparse_fc1: activation_cache: expected memory apart from columns.counts, got "
           "memory that overlaps it");
    expect(message_of<Unsupported>([&] {
             Arguments a{m.x, m.w1, m.b1, m.lists(), m.activation, m.cache, m.delta};
             for (TensorView* t :
                  {&a.x, &a.w1, &a.cache, &a.delta, &a.columns.indices, &a.columns.counts}) {
               t->device = {chipmunk::DeviceType::kCuda, 0};
             }
             chipmunk::column_sparse_fc1(a.x, a.w1, nullptr, a.columns, a.activation, a.cache,
                                         a.delta, Context{});
           }),
           "column_sparse_fc1: x: float32 on cuda:0; the CUDA kernels take bfloat16 and float16");
    expect(message([&](A& a) { a.columns.order = i32({3, 3}); }),
           "column_sparse_fc1: columns.order: expected shape [3, lists=4], got [3, 3]");
    expect(message([&](A& a) {
             a.columns.order = i32({3, 4});
             a.columns.order->data = a.cache.data;
           }),
           "column_sparse_fc1: activation_cache: expected memory apart from columns.order, got "
           "memory that overlaps it");
    expect(m.cache.same_bits(old_cache) ? "same" : "changed", "same");
  });

  tests.add("column_sparse_fc2: messages", [=] {
    const Mlp m(shape, Activation::kGelu, DType::kBFloat16, 1, false);
    const Tensor old_out = m.out.clone();
    struct Arguments {
      TensorView delta, w2t;
      ColumnLists columns;
      TensorView out;
    };
    const auto message = [&](auto&& change) {
      Arguments a{m.delta, m.w2t, m.lists(), m.out};
      change(a);
      return message_of<InvalidArgument>(
          [&] { chipmunk::column_sparse_fc2(a.delta, a.w2t, a.columns, a.out, Context{}); });
    };
    using A = Arguments;
    expect(message([&](A& a) { a.out = Tensor(DType::kBFloat16, {200, 6}); }),
           "column_sparse_fc2: out: expected shape [batch, tokens, out_channels], got [200, 6]");
    expect(message([&](A& a) { a.out.dtype = DType::kBool; }),
           "column_sparse_fc2: out: expected dtype float32 or bfloat16 or float16, got bool");
    expect(message([&](A& a) { a.out.read_only = true; }),
           "column_sparse_fc2: out: expected a writable array, got a read-only one");
    expect(message([&](A& a) { a.out.strides[1] = 0; }),
           "column_sparse_fc2: out: expected distinct elements at distinct addresses, got a view "
           "that overlaps itself");
    expect(message([&](A& a) { a.delta = Tensor(DType::kBFloat16, {2, 2, 4, 64}); }),
           "column_sparse_fc2: packed_delta: expected shape [batch=2, groups=2, capacity=4, "
           "query_group=128], got [2, 2, 4, 64]");
    expect(message([&](A& a) { a.delta.dtype = DType::kFloat32; }),
           "column_sparse_fc2: packed_delta: expected dtype bfloat16 as out, got float32");
    expect(message([&](A& a) { a.delta.strides[3] = 2; }),
           "column_sparse_fc2: packed_delta: expected a contiguous last dimension (stride 1), got "
           "stride 2");
    expect(message([&](A& a) { a.delta.data = nullptr; }),
           "column_sparse_fc2: packed_delta: expected data, got a null pointer");
    expect(message([&](A& a) { a.w2t = Tensor(DType::kBFloat16, {10, 7}); }),
           "column_sparse_fc2: w2t: expected shape [hidden, out_channels=6], got [10, 7]");
    expect(message([&](A& a) { a.w2t = Tensor(DType::kBFloat16, {6}); }),
           "column_sparse_fc2: w2t: expected shape [hidden, out_channels=6], got [6]");
    expect(message([&](A& a) { a.columns.query_group = 64; }),
           "column_sparse_fc2: columns.query_group: expected 128, got 64");
    expect(message([&](A& a) { a.delta.data = a.out.data; }),
           "column_sparse_fc2: out: expected memory apart from packed_delta, got memory that "
           "overlaps it");
    expect(message([&](A& a) { a.w2t.data = a.out.data; }),
           "column_sparse_fc2: out: expected memory apart from w2t, got memory that overlaps it");
    expect(message([&](A& a) { a.columns.indices.data = a.out.data; }),
           "column_sparse_fc2: out: expected memory apart from columns.indices, got memory that "
           "overlaps it");
    expect(m.out.same_bits(old_out) ? "same" : "changed", "same");
  });
}

void add_whole_message_tests(testing::Tests& tests) {
  tests.add("column_sparse_mlp: messages", [&] {
    const Mlp m({2, 200, 8, 10, 6, 4}, Activation::kGelu, DType::kFloat32, 1, false);
    const Tensor old_cache = m.cache.clone(), old_out = m.out.clone();
    struct Arguments {
      TensorView x, w1, b1, w2t;
      ColumnLists columns;
      chipmunk::MlpCache cache;
      TensorView delta;
    };
    const auto expect = [&](auto&& change, const std::string& expected) {
      Arguments a{m.x, m.w1, m.b1, m.w2t, m.lists(), {m.cache, m.out}, m.delta};
      change(a);
      const std::string got = message_of<InvalidArgument>([&] {
        chipmunk::column_sparse_mlp(a.x, a.w1, &a.b1, a.w2t, a.columns, m.activation, a.cache,
                                    a.delta, Context{});
      });
      tests.check(got == "column_sparse_mlp: " + expected,
                  "expected '" + expected + "', got '" + got + "'");
    };
    const auto f32 = [](std::initializer_list<int64_t> dims) {
      return Tensor(DType::kFloat32, dims);
    };
    const std::string overlap = ", got memory that overlaps it";
    using A = Arguments;
    expect([&](A& a) { a.x = f32({200, 8}); },
           "x: expected shape [batch, tokens, channels], got [200, 8]");
    expect([&](A& a) { a.columns.query_group = 64; }, "columns.query_group: expected 128, got 64");
    expect([&](A& a) { a.cache.activations = f32({2, 11, 200}); },
           "cache.activations: expected shape [batch=2, hidden=10, tokens=200], got [2, 11, 200]");
    expect([&](A& a) { a.cache.activations.read_only = true; },
           "cache.activations: expected a writable array, got a read-only one");
    expect([&](A& a) { a.w2t = f32({9, 6}); },
           "w2t: expected shape [hidden=10, out_channels], got [9, 6]");
    expect([&](A& a) { a.w2t = f32({6}); },
           "w2t: expected shape [hidden=10, out_channels], got [6]");
    expect([&](A& a) { a.w2t.dtype = DType::kFloat16; },
           "w2t: expected dtype float32 as x, got float16");
    expect([&](A& a) { a.cache.output = f32({2, 200, 7}); },
           "cache.output: expected shape [batch=2, tokens=200, out_channels=6], got [2, 200, 7]");
    expect([&](A& a) { a.cache.output.dtype = DType::kBFloat16; },
           "cache.output: expected dtype float32 as x, got bfloat16");
    expect([&](A& a) { a.cache.output.read_only = true; },
           "cache.output: expected a writable array, got a read-only one");
    expect([&](A& a) { a.delta = f32({2, 2, 3, 128}); },
           "packed_delta: expected shape [batch=2, groups=2, capacity=4, query_group=128], got "
           "[2, 2, 3, 128]");
    expect([&](A& a) { a.cache.output.data = a.cache.activations.data; },
           "cache.output: expected memory apart from cache.activations" + overlap);
    expect([&](A& a) { a.w2t.data = a.cache.activations.data; },
           "cache.activations: expected memory apart from w2t" + overlap);
    expect([&](A& a) { a.w2t.data = a.cache.output.data; },
           "cache.output: expected memory apart from w2t" + overlap);
    expect([&](A& a) { a.delta.data = a.cache.output.data; },
           "cache.output: expected memory apart from packed_delta" + overlap);
    expect([&](A& a) { a.columns.indices.data = a.cache.output.data; },
           "cache.output: expected memory apart from columns.indices" + overlap);
    expect([&](A& a) { a.cache.output.data = a.x.data; },
           "cache.output: expected memory apart from x" + overlap);
    tests.check(m.cache.same_bits(old_cache) && m.out.same_bits(old_out), "nothing was written");
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  add_message_tests(tests);
  add_whole_message_tests(tests);
  return tests.run();
}
