// Every message of the attention ops.
#include <string>

#include "attention_reference.h"
#include "testing.h"

namespace {

using chipmunk::AttentionPart;
using chipmunk::Context;
using chipmunk::InvalidArgument;
using chipmunk::TensorView;
using chipmunk::Unsupported;
using testing::DType;
using testing::Lists;
using testing::message_of;
using testing::Part;
using testing::Tensor;

// The arguments of every op, right as they are: a case changes one and calls.
struct Arguments {
  Tensor memory_q{DType::kFloat32, {2, 4, 100, 16}};
  Tensor memory_k{DType::kFloat32, {2, 2, 30, 16}};
  Tensor memory_v{DType::kFloat32, {2, 2, 30, 16}};
  Tensor memory_lse{DType::kFloat32, {2, 4, 100}};
  Tensor memory_sums{DType::kFloat32, {2, 4, 2, 30}};
  Part memory_result{DType::kFloat32, 2, 4, 100, 16};
  Part memory_a{DType::kFloat32, 2, 4, 100, 16};
  Part memory_b{DType::kFloat32, 2, 4, 100, 16};
  Lists memory_lists{2, 4, 100, 64, 30};

  TensorView q = memory_q, k = memory_k, v = memory_v;
  TensorView reference_lse = memory_lse, column_sums = memory_sums;
  AttentionPart result = memory_result.part(), a = memory_a.part(), b = memory_b.part();
  chipmunk::ColumnLists columns = memory_lists.lists();
  int32_t query_group = 64;
  float scale = 0.25f;
  Context context;

  void dense() const { chipmunk::dense_attention(q, k, v, scale, result, context); }
  void sums() const {
    chipmunk::dense_attention_column_sums(q, k, v, &reference_lse, query_group, scale, result,
                                          column_sums, context);
  }
  void sparse() const {
    chipmunk::column_sparse_attention(q, k, v, columns, &a, scale, result, context);
  }
  void merge() const { chipmunk::merge_attention(a, b, result, context); }
  void rest_of() const { chipmunk::rest_of_attention(a, b, result, context); }
};

class Messages {
 public:
  explicit Messages(testing::Tests& tests) : tests_(tests) {}

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
  testing::Tests& tests_;
};

void to_gpu(TensorView& t, int32_t index = 0) { t.device = {chipmunk::DeviceType::kCuda, index}; }

// Everything on the GPU, in a dtype: nothing is read there before the checks are done.
void all_to_gpu(Arguments& x, DType dtype) {
  for (TensorView* t : {&x.q, &x.k, &x.v, &x.result.out, &x.a.out, &x.b.out}) {
    to_gpu(*t);
    t->dtype = dtype;
  }
  for (TensorView* t : {&x.result.lse, &x.a.lse, &x.b.lse, &x.reference_lse, &x.column_sums,
                        &x.columns.indices, &x.columns.counts}) {
    to_gpu(*t);
  }
}

void shapes(testing::Tests& tests) {
  tests.add("right arguments pass", [&] {
    const Arguments x;
    x.dense();
    x.sums();
    x.sparse();
    x.merge();
    x.rest_of();
    tests.check(true, "no exception");
  });
  tests.add("shapes", [&] {
    Messages m(tests);
    const std::string op = "dense_attention: ";
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.q.rank = 3; },
        op + "q: expected shape [batch, query_heads, queries, head_dim], got [2, 4, 100]");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.k.rank = 3; },
        op + "k: expected shape [batch, kv_heads, keys, head_dim], got [2, 2, 30]");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.k.shape[0] = 1; },
        op + "k: expected shape [batch=2, kv_heads=2, keys=30, head_dim=16], "
             "got [1, 2, 30, 16]");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.v.shape[2] = 29; },
        op + "v: expected shape [batch=2, kv_heads=2, keys=30, head_dim=16], "
             "got [2, 2, 29, 16]");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.k.shape[1] = x.v.shape[1] = 3; },
        op + "k: expected kv_heads that divide query_heads=4, got 3");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.k.shape[1] = x.v.shape[1] = 0; },
        op + "k: expected kv_heads that divide query_heads=4, got 0");
    for (const int64_t head_dim : {0, 12, 264}) {
      m.expect(
          &Arguments::dense, [=](Arguments& x) { x.q.shape[3] = head_dim; },
          op + "q: expected a head_dim that is a multiple of 8, from 8 to 256, got " +
              std::to_string(head_dim));
    }
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.out.shape[2] = 99; },
        op + "out: expected shape [batch=2, heads=4, queries=100, head_dim=16], "
             "got [2, 4, 99, 16]");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.lse.shape[2] = 99; },
        op + "lse: expected shape [batch=2, heads=4, queries=100], got [2, 4, 99]");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.column_sums.shape[2] = 3; },
        "dense_attention_column_sums: column_sums: expected shape [batch=2, query_heads=4, "
        "groups=2, keys=30], got [2, 4, 3, 30]");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.reference_lse.rank = 2; },
        "dense_attention_column_sums: reference_lse: expected shape [batch=2, query_heads=4, "
        "queries=100], got [2, 4]");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.indices.shape[1] = 2; },
        "column_sparse_attention: columns.indices: expected shape [batch=2, query_heads=4, "
        "groups=2, capacity], got [2, 2, 2, 30]");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.counts.shape[2] = 1; },
        "column_sparse_attention: columns.counts: expected shape [batch=2, query_heads=4, "
        "groups=2], got [2, 4, 1]");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.a.out.shape[3] = 8; },
        "column_sparse_attention: rest.out: expected shape [batch=2, heads=4, queries=100, "
        "head_dim=16], got [2, 4, 100, 8]");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.a.lse.shape[0] = 1; },
        "column_sparse_attention: rest.lse: expected shape [batch=2, heads=4, queries=100], "
        "got [1, 4, 100]");
    m.expect(
        &Arguments::merge, [](Arguments& x) { x.a.out.rank = 2; },
        "merge_attention: a.out: expected shape [batch, heads, queries, head_dim], got [2, 4]");
    m.expect(
        &Arguments::merge, [](Arguments& x) { x.b.lse.shape[2] = 5; },
        "merge_attention: b.lse: expected shape [batch=2, heads=4, queries=100], got [2, 4, 5]");
    m.expect(
        &Arguments::rest_of, [](Arguments& x) { x.b.out.shape[1] = 1; },
        "rest_of_attention: selected.out: expected shape [batch=2, heads=4, queries=100, "
        "head_dim=16], got [2, 1, 100, 16]");
  });
}

void types(testing::Tests& tests) {
  tests.add("dtypes", [&] {
    Messages m(tests);
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.q.dtype = DType::kInt32; },
        "dense_attention: q: expected dtype float32 or bfloat16 or float16, got int32");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.k.dtype = DType::kFloat16; },
        "dense_attention: k: expected dtype float32 as q, got float16");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.v.dtype = DType::kBFloat16; },
        "dense_attention: v: expected dtype float32 as q, got bfloat16");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.out.dtype = DType::kBFloat16; },
        "dense_attention: out: expected dtype float32 as q, got bfloat16");
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.result.lse.dtype = DType::kBFloat16; },
        "dense_attention: lse: expected dtype float32, got bfloat16");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.column_sums.dtype = DType::kFloat16; },
        "dense_attention_column_sums: column_sums: expected dtype float32 or bfloat16, "
        "got float16");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.reference_lse.dtype = DType::kFloat16; },
        "dense_attention_column_sums: reference_lse: expected dtype float32, got float16");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.indices.dtype = DType::kBool; },
        "column_sparse_attention: columns.indices: expected dtype int32, got bool");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.a.out.dtype = DType::kFloat16; },
        "column_sparse_attention: rest.out: expected dtype float32 as q, got float16");
    m.expect(
        &Arguments::merge, [](Arguments& x) { x.a.out.dtype = DType::kBool; },
        "merge_attention: a.out: expected dtype float32 or bfloat16 or float16, got bool");
    m.expect(
        &Arguments::merge, [](Arguments& x) { x.b.out.dtype = DType::kFloat16; },
        "merge_attention: b.out: expected dtype float32 as a.out, got float16");
    m.expect(
        &Arguments::rest_of, [](Arguments& x) { x.b.lse.dtype = DType::kInt32; },
        "rest_of_attention: selected.lse: expected dtype float32, got int32");
  });
  tests.add("devices", [&] {
    Messages m(tests);
    m.expect(
        &Arguments::dense, [](Arguments& x) { to_gpu(x.k, 1); },
        "dense_attention: k: expected device cpu as q, got cuda:1");
    m.expect(
        &Arguments::dense, [](Arguments& x) { to_gpu(x.result.lse); },
        "dense_attention: lse: expected device cpu as q, got cuda:0");
    m.expect(
        &Arguments::sums, [](Arguments& x) { to_gpu(x.reference_lse); },
        "dense_attention_column_sums: reference_lse: expected device cpu as q, got cuda:0");
    m.expect(
        &Arguments::sums, [](Arguments& x) { to_gpu(x.column_sums); },
        "dense_attention_column_sums: column_sums: expected device cpu as q, got cuda:0");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { to_gpu(x.columns.counts); },
        "column_sparse_attention: columns.counts: expected device cpu as q, got cuda:0");
    m.expect(
        &Arguments::merge, [](Arguments& x) { to_gpu(x.b.out); },
        "merge_attention: b.out: expected device cpu as a.out, got cuda:0");
  });
  tests.add("numbers", [&] {
    Messages m(tests);
    m.expect(
        &Arguments::dense, [](Arguments& x) { x.scale = NAN; },
        "dense_attention: softmax_scale: expected a finite number, got nan");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.scale = INFINITY; },
        "column_sparse_attention: softmax_scale: expected a finite number, got inf");
    m.expect(
        &Arguments::sums, [](Arguments& x) { x.query_group = 0; },
        "dense_attention_column_sums: query_group: expected a positive number, got 0");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.query_group = -64; },
        "column_sparse_attention: columns.query_group: expected a positive number, got -64");
  });
  // What the limits are, test_cuda_limits.cpp tests: here, which op asks for which.
  tests.add("what only the CPU does", [&] {
    Messages m(tests);
    const std::string sums = "dense_attention_column_sums: ", sparse = "column_sparse_attention: ";
    const std::string types = "q: float32 on cuda:0; the CUDA kernels take bfloat16 and float16";
    const std::string groups = " on cuda:0; the CUDA kernels take 64, 128, 192 and 256";
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
        sums + "query_group: 50" + groups);
    m.expect<Unsupported>(
        &Arguments::sparse,
        [=](Arguments& x) {
          wide(x);
          x.columns.query_group = 50;
        },
        sparse + "columns.query_group: 50" + groups);
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

void orders(testing::Tests& tests) {
  tests.add("an order of the lists", [&] {
    Messages m(tests);
    const std::string order = "column_sparse_attention: columns.order: expected ";
    static const Tensor right(DType::kInt32, {2, 16});
    m.expect(&Arguments::sparse, [](Arguments& x) { x.columns.order = right; }, "");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.order = Tensor(DType::kInt32, {2, 15}); },
        order + "shape [2, lists=16], got [2, 15]");
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.columns.order = Tensor(DType::kInt32, {32}); },
        order + "shape [2, lists=16], got [32]");
    m.expect(
        &Arguments::sparse,
        [](Arguments& x) { x.columns.order = Tensor(DType::kFloat32, {2, 16}); },
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
        [](Arguments& x) { x.columns.order = Tensor(DType::kInt32, {2, 32}).slice(1, 0, 16); },
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
        &Arguments::sums, [](Arguments& x) { x.reference_lse.data = x.column_sums.data; },
        apart(sums, "column_sums", "reference_lse"));
    m.expect(
        &Arguments::sparse, [](Arguments& x) { x.result.lse.data = x.columns.counts.data; },
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

}  // namespace

int main() {
  testing::Tests tests;
  shapes(tests);
  types(tests);
  orders(tests);
  memory(tests);
  return tests.run();
}
