// What the attention ops say of wrong shapes, dtypes, devices and numbers.
#include <string>

#include "attention_arguments.h"

namespace {

using testing::Arguments;
using testing::DType;
using testing::Messages;
using testing::to_gpu;

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
}

}  // namespace

int main() {
  testing::Tests tests;
  shapes(tests);
  types(tests);
  return tests.run();
}
