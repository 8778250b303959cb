// What the attention ops say of memory and of a list's order, and what a GPU cannot do.
#include <string>

#include "attention_arguments.h"

namespace {

using chipmunk::TensorView;
using chipmunk::Unsupported;
using testing::all_to_gpu;
using testing::Arguments;
using testing::DType;
using testing::Messages;
using testing::Tensor;
using testing::to_gpu;

void orders(testing::Tests& tests) {
  tests.add("an order of the lists", [&] {
    Messages m(tests);
    const std::string order = "column_sparse_attention: columns.order: expected ";
    static const Tensor right(DType::kInt32, {3, 16});
    m.expect(&Arguments::sparse, [](Arguments& x) { x.columns.order = right; }, "");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.order = Tensor(DType::kInt32, {3, 15}); },
        order + "shape [3, lists=16], got [3, 15]");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.order = Tensor(DType::kInt32, {48}); },
        order + "shape [3, lists=16], got [48]");
    m.expect(
        &Arguments::sparse,
        [](Arguments& x) { x.columns.order = Tensor(DType::kFloat32, {3, 16}); },
        order + "dtype int32, got float32");
    m.expect(
        &Arguments::sparse,
        [](Arguments& x) {
          x.columns.order = right;
          to_gpu(*x.columns.order);
        },
        order + "device cpu as q, got cuda:0");
    m.expect(
        &Arguments::sparse,
        [](Arguments& x) { x.columns.order = Tensor(DType::kInt32, {3, 32}).slice(1, 0, 16); },
        order + "a contiguous array, got strides [32, 1]");
    m.expect(
        &Arguments::sparse,
        [](Arguments& x) {
          x.columns.order = right;
          x.columns.order->data = nullptr;
        },
        order + "data, got a null pointer");
    m.expect(
        &Arguments::sparse,
        [](Arguments& x) {
          x.columns.order = right;
          x.columns.order->data = x.result.lse.data;
        },
        "column_sparse_attention: lse: expected memory apart from columns.order, got memory that "
        "overlaps it");
  });
}

void memory(testing::Tests& tests) {
  tests.add("strides, null data, read-only outputs", [&] {
    Messages m(tests);
    for (const auto& [name, member] : {std::pair{"q", &Arguments::q}, std::pair{"k", &Arguments::k},
                                       std::pair{"v", &Arguments::v}}) {
      const std::string prefix = std::string("dense_attention: ") + name;
      m.expect(
          &Arguments::dense, [member](Arguments& x) { (x.*member).strides[3] = 2; },
          prefix + ": expected a contiguous last dimension (stride 1), got stride 2");
      m.expect(
          &Arguments::dense, [member](Arguments& x) { (x.*member).data = nullptr; },
          prefix + ": expected data, got a null pointer");
    }
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.out.strides[3] = 0; },
        "dense_attention: out: expected a contiguous last dimension (stride 1), got stride 0");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.out.data = nullptr; },
        "dense_attention: out: expected data, got a null pointer");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.out.read_only = true; },
        "dense_attention: out: expected a writable array, got a read-only one");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.lse.read_only = true; },
        "dense_attention: lse: expected a writable array, got a read-only one");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.lse.strides[1] = 0; },
        "dense_attention: lse: expected distinct elements at distinct addresses, "
        "got a view that overlaps itself");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.column_sums.strides[3] = 2; },
        "dense_attention_column_sums: column_sums: expected a contiguous last dimension "
        "(stride 1), got stride 2");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.column_sums.read_only = true; },
        "dense_attention_column_sums: column_sums: expected a writable array, got a read-only "
        "one");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.indices.data = nullptr; },
        "column_sparse_attention: columns.indices: expected data, got a null pointer");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.a.lse.data = nullptr; },
        "column_sparse_attention: rest.lse: expected data, got a null pointer");
    m.expect(
        &Arguments::merge, [](Arguments& x) { x.b.out.strides[3] = 3; },
        "merge_attention: b.out: expected a contiguous last dimension (stride 1), got stride 3");
    m.expect(
        &Arguments::merge, [](Arguments& x) { x.result.out.read_only = true; },
        "merge_attention: out: expected a writable array, got a read-only one");
  });
  // The smaller of two moves into the larger, so that it overlaps nothing else.
  tests.add("outputs that overlap something", [&] {
    Messages m(tests);
    const auto apart = [](const std::string& op, const std::string& output,
                          const std::string& other) {
      return op + ": " + output + ": expected memory apart from " + other +
             ", got memory that overlaps it";
    };
    const std::string dense = "dense_attention", sums = "dense_attention_column_sums";
    const std::string sparse = "column_sparse_attention", merge = "merge_attention";
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.out.data = x.q.data; },
        apart(dense, "out", "q"));
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.lse.data = x.k.data; },
        apart(dense, "lse", "k"));
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.v.data = x.result.out.data; },
        apart(dense, "out", "v"));
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.lse.data = x.result.out.data; },
        apart(dense, "out", "lse"));
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.column_sums.data = x.result.out.data; },
        apart(sums, "column_sums", "out"));
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.column_sums.data = x.v.data; },
        apart(sums, "column_sums", "v"));
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.reference_lse = x.result.lse; },
        apart(sums, "lse", "reference_lse"));
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.column_sums.data = x.reference_lse.data; },
        apart(sums, "column_sums", "reference_lse"));
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.counts.data = x.result.lse.data; },
        apart(sparse, "lse", "columns.counts"));
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.indices.data = x.result.out.data; },
        apart(sparse, "out", "columns.indices"));
    // The rest may be the result itself, but not one row further down.
    m.expect(&Arguments::sparse, [](Arguments& x) { x.a = x.result; }, "");
    m.expect(
        &Arguments::sparse,
        [](Arguments& x) {
          x.a.out = x.memory_result.out.slice(2, 1, 100);
          x.result.out = x.memory_result.out.slice(2, 0, 99);
          x.q = x.memory_q.slice(2, 0, 99);
          x.result.lse = x.memory_result.lse.slice(2, 0, 99);
          x.a.lse = x.memory_a.lse.slice(2, 0, 99);
          x.query_rows = x.memory_rows.slice(0, 0, 99);
        },
        apart(sparse, "out", "rest.out"));
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.a.lse.data = x.result.out.data; },
        apart(sparse, "out", "rest.lse"));
    m.expect(&Arguments::merge, [](Arguments& x) { x.a = x.result; }, apart(merge, "out", "a.out"));
    m.expect(
        &Arguments::rest_of, [](Arguments& x) { x.b.lse = x.result.lse; },
        apart("rest_of_attention", "lse", "selected.lse"));
  });
}

void limits(testing::Tests& tests) {
  // What the limits are, test_cuda_limits.cpp tests: here, which op asks for which.
  tests.add("what only the CPU does", [&] {
    Messages m(tests);
    const std::string sums = "dense_attention_column_sums: ", sparse = "column_sparse_attention: ";
    const std::string types = "q: float32 on cuda:0; the CUDA kernels take bfloat16 and float16";
    for (const auto& [op, name] : {std::pair{&Arguments::dense, "dense_attention: "},
                                   std::pair{&Arguments::sums, "dense_attention_column_sums: "},
                                   std::pair{&Arguments::sparse, "column_sparse_attention: "}}) {
      m.expect<Unsupported>(op, [](Arguments& x) { all_to_gpu(x, DType::kFloat32); }, name + types);
      m.expect<Unsupported>(
          op, [](Arguments& x) { all_to_gpu(x, DType::kBFloat16); },
          name +
              std::string("q: head_dim 16 on cuda:0; the CUDA kernels take 64, 96, 128 and 256"));
    }
    // Head dim 64, at addresses far from everything else: nothing is read there.
    const auto wide = [](Arguments& x) {
      all_to_gpu(x, DType::kBFloat16);
      uintptr_t address = uintptr_t{1} << 40;
      for (TensorView* t : {&x.q, &x.k, &x.v, &x.result.out, &x.a.out}) {
        t->shape[3] = 64;
        t->strides = {4 * 100 * 64, 100 * 64, 64, 1};
        t->data = reinterpret_cast<void*>(address += uintptr_t{1} << 30);
      }
    };
    m.expect<Unsupported>(
        &Arguments::sums,
        [=](Arguments& x) {
          wide(x);
          x.query_group = 50;
        },
        sums + "query_group: 50 on cuda:0; the CUDA kernels take 64, 128 and 192");
    m.expect<Unsupported>(
        &Arguments::sparse,
        [=](Arguments& x) {
          wide(x);
          x.columns.query_group = 50;
        },
        sparse + "columns.query_group: 50 on cuda:0; the CUDA kernels take 64, 128, 192 and 256");
    m.expect<Unsupported>(
        &Arguments::sparse,
        [=](Arguments& x) {
          wide(x);
          x.scale = -1.0f;
        },
        sparse + "softmax_scale: -1.000000 on cuda:0; the CUDA kernels take numbers >= 0");
    m.expect<Unsupported>(
        &Arguments::sparse,
        [=](Arguments& x) {
          wide(x);
          x.a.out.strides[2] = 68;
          x.a.out.strides[1] = 6800;
          x.a.out.strides[0] = 27200;
        },
        sparse +
            "rest.out: rows at any address on cuda:0; the CUDA kernels take rows that start at "
            "multiples of 16 bytes; pass a contiguous copy");
    m.expect(
        &Arguments::sparse,
        [](Arguments& x) {
          all_to_gpu(x, DType::kFloat32);
          x.columns.counts.shape[2] = 1;
        },
        sparse +
            "columns.counts: expected shape [batch=2, query_heads=4, groups=2], got [2, 4, 1]");
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  orders(tests);
  memory(tests);
  limits(tests);
  return tests.run();
}
