#include "ops/check.h"
#include "tensor.h"
#include "testing.h"

namespace {

using chipmunk::ArgChecker;
using chipmunk::Device;
using chipmunk::DeviceType;
using chipmunk::InvalidArgument;
using chipmunk::Unsupported;
using testing::DType;
using testing::message_of;
using testing::Tensor;
using testing::TensorView;

void add_message_tests(testing::Tests& tests) {
  static const ArgChecker check("some_op");
  const auto expect = [&](const std::string& name, auto&& body, const std::string& expected) {
    tests.add(name, [&tests, body, expected] {
      const std::string got = message_of<InvalidArgument>(body);
      tests.check(got == expected, "expected '" + expected + "', got '" + got + "'");
    });
  };
  static const Tensor t(DType::kFloat32, {2, 3, 5});

  expect(
      "fail", [] { check.fail("x", "a cat", "a dog"); }, "some_op: x: expected a cat, got a dog");
  tests.add("unsupported", [&tests] {
    const std::string got = message_of<Unsupported>([] { check.unsupported("x", "not here"); });
    tests.check(got == "some_op: x: not here", got);
  });
  expect("rank fits", [] { check.rank("x", t, {"batch", "rows", "columns"}); }, "");
  expect(
      "rank differs", [] { check.rank("x", t, {"rows", "columns"}); },
      "some_op: x: expected shape [rows, columns], got [2, 3, 5]");
  expect(
      "rank of a scalar", [] { check.rank("x", Tensor(DType::kBool, {}), {"rows"}); },
      "some_op: x: expected shape [rows], got []");
  expect(
      "shape fits", [] { check.shape("x", t, {{"batch", 2}, {"rows", 3}, {"columns", 5}}); }, "");
  expect(
      "shape differs", [] { check.shape("x", t, {{"batch", 2}, {"rows", 4}, {"columns", 5}}); },
      "some_op: x: expected shape [batch=2, rows=4, columns=5], got [2, 3, 5]");
  expect(
      "shape of another rank", [] { check.shape("x", t, {{"batch", 2}, {"rows", 3}}); },
      "some_op: x: expected shape [batch=2, rows=3], got [2, 3, 5]");
  expect("dtype fits", [] { check.dtype("x", t, {DType::kInt32, DType::kFloat32}); }, "");
  expect(
      "dtype, one allowed", [] { check.dtype("x", t, {DType::kBool}); },
      "some_op: x: expected dtype bool, got float32");
  expect(
      "dtype, several allowed",
      [] { check.dtype("x", t, {DType::kBFloat16, DType::kFloat16, DType::kInt32}); },
      "some_op: x: expected dtype bfloat16 or float16 or int32, got float32");
  expect("same dtype", [] { check.same_dtype("x", t, "y", DType::kFloat32); }, "");
  expect(
      "another dtype", [] { check.same_dtype("x", t, "y", DType::kFloat16); },
      "some_op: x: expected dtype float16 as y, got float32");
  expect("same device", [] { check.same_device("x", t, "y", Device{}); }, "");
  expect(
      "another kind of device",
      [] { check.same_device("x", t, "y", Device{DeviceType::kCuda, 1}); },
      "some_op: x: expected device cuda:1 as y, got cpu");
  expect(
      "another device of the kind",
      [] {
        TensorView v = t;
        v.device = {DeviceType::kCuda, 2};
        check.same_device("x", v, "y", Device{DeviceType::kCuda, 0});
      },
      "some_op: x: expected device cuda:0 as y, got cuda:2");
  expect("last dimension contiguous", [] { check.last_dim_contiguous("x", t); }, "");
  expect(
      "last dimension of size 1", [] { check.last_dim_contiguous("x", t.slice(2, 0, 1, 7)); }, "");
  expect(
      "last dimension strided", [] { check.last_dim_contiguous("x", t.transposed(1, 2)); },
      "some_op: x: expected a contiguous last dimension (stride 1), got stride 5");
  expect("contiguous", [] { check.contiguous("x", t); }, "");
  expect(
      "contiguous, a stride never taken", [] { check.contiguous("x", t.slice(0, 0, 1, 7)); }, "");
  expect("contiguous, empty", [] { check.contiguous("x", t.slice(2, 1, 1)); }, "");
  expect(
      "not contiguous", [] { check.contiguous("x", t.slice(2, 0, 4)); },
      "some_op: x: expected a contiguous array, got strides [15, 5, 1]");

  expect("readable", [] { check.readable("x", t); }, "");
  expect(
      "null data",
      [] {
        TensorView v = t;
        v.data = nullptr;
        check.readable("x", v);
      },
      "some_op: x: expected data, got a null pointer");
  expect(
      "null data of an empty tensor",
      [] {
        TensorView v = t;
        v.data = nullptr;
        v.shape[1] = 0;
        check.readable("x", v);
        check.writable("x", v);
      },
      "");
  expect("writable", [] { check.writable("x", t); }, "");
  expect(
      "writable null data",
      [] {
        TensorView v = t;
        v.data = nullptr;
        check.writable("x", v);
      },
      "some_op: x: expected data, got a null pointer");
  expect(
      "read-only",
      [] {
        TensorView v = t;
        v.read_only = true;
        check.writable("x", v);
      },
      "some_op: x: expected a writable array, got a read-only one");
}

// A view of float32 at `offset` elements into one buffer.
TensorView view(int64_t offset, std::vector<int64_t> shape, std::vector<int64_t> strides) {
  static float buffer[4096];
  TensorView v;
  v.data = buffer + offset;
  v.rank = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    v.shape[i] = shape[i];
    v.strides[i] = strides[i];
  }
  return v;
}

void add_overlap_tests(testing::Tests& tests) {
  const auto writable = [](const TensorView& v) {
    return message_of<InvalidArgument>([&] { ArgChecker("some_op").writable("x", v); });
  };
  tests.add("outputs that overlap themselves", [&tests, writable] {
    const std::string message =
        "some_op: x: expected distinct elements at distinct addresses, got a view that overlaps "
        "itself";
    const std::pair<TensorView, bool> cases[] = {
        {view(0, {4, 5}, {5, 1}), true},        {view(0, {4, 5}, {1, 4}), true},
        {view(0, {4, 5}, {9, 1}), true},        {view(0, {2, 3, 4}, {4, 8, 1}), true},
        {view(20, {4, 5}, {-5, 1}), true},      {view(0, {1, 5}, {0, 1}), true},
        {view(0, {0, 5}, {0, 1}), true},        {view(0, {4, 5}, {0, 1}), false},
        {view(0, {4, 5}, {4, 1}), false},       {view(0, {4, 5}, {1, 1}), false},
        {view(0, {2, 3, 4}, {4, 4, 1}), false}, {view(0, {3}, {0}), false},
    };
    for (const auto& [v, apart] : cases) {
      tests.check(writable(v) == (apart ? "" : message),
                  "shape " + chipmunk::to_string(v) + ": " + writable(v));
    }
  });

  tests.add("outputs and inputs", [&tests] {
    const std::string message =
        "some_op: out: expected memory apart from q, got memory that overlaps it";
    struct Case {
      const char* name;
      TensorView out, other;
      bool apart;
    };
    const Case cases[] = {
        {"the same", view(0, {4, 5}, {5, 1}), view(0, {4, 5}, {5, 1}), false},
        {"one after the other", view(0, {4, 5}, {5, 1}), view(20, {4, 5}, {5, 1}), true},
        {"one shared element", view(0, {4, 5}, {5, 1}), view(19, {4, 5}, {5, 1}), false},
        {"slices of a packed projection", view(0, {6, 4}, {12, 1}), view(4, {6, 4}, {12, 1}), true},
        {"slices that share a column", view(0, {6, 5}, {12, 1}), view(4, {6, 4}, {12, 1}), false},
        {"heads of a packed projection", view(0, {2, 6, 4}, {4, 24, 1}),
         view(8, {2, 6, 4}, {4, 24, 1}), true},
        {"the first and last of a packed projection", view(8, {6, 4}, {12, 1}),
         view(0, {6, 4}, {12, 1}), true},
        {"the output before the input", view(0, {2, 6, 4}, {4, 24, 1}), view(20, {6, 4}, {24, 1}),
         true},
        {"even and odd rows", view(0, {3, 4}, {8, 1}), view(4, {3, 4}, {8, 1}), true},
        {"even rows and all", view(0, {3, 4}, {8, 1}), view(4, {6, 4}, {4, 1}), false},
        {"backwards from the end", view(20, {3, 5}, {-5, 1}), view(0, {2, 5}, {5, 1}), true},
        {"backwards into it", view(20, {4, 5}, {-5, 1}), view(0, {2, 5}, {5, 1}), false},
        {"an empty input", view(0, {4, 5}, {5, 1}), view(0, {0, 5}, {5, 1}), true},
        {"an empty output", view(0, {4, 0}, {5, 1}), view(0, {4, 5}, {5, 1}), true},
        {"a broadcast input inside", view(0, {4, 5}, {5, 1}), view(3, {4, 5}, {0, 1}), false},
    };
    for (const Case& c : cases) {
      const auto got = [](const TensorView& out, const TensorView& other) {
        return message_of<InvalidArgument>(
            [&] { ArgChecker("some_op").no_overlap("out", out, "q", other); });
      };
      const std::string expected = c.apart ? "" : message;
      for (int64_t shift = 0; shift < 32; ++shift) {  // wherever the buffer lies
        TensorView out = c.out, other = c.other;
        out.data = static_cast<float*>(out.data) + shift;
        other.data = static_cast<float*>(other.data) + shift;
        tests.check(got(out, other) == expected,
                    std::string(c.name) + " at " + std::to_string(shift) + ": " + got(out, other));
      }
    }
    TensorView elsewhere = cases[0].out;
    elsewhere.device = {DeviceType::kCuda, 0};
    tests.check(message_of<InvalidArgument>([&] {
                  ArgChecker("some_op").no_overlap("out", elsewhere, "q", cases[0].out);
                }).empty(),
                "equal addresses on two devices are apart");
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  add_message_tests(tests);
  add_overlap_tests(tests);
  return tests.run();
}
