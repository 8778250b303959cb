// What ops/cuda_limits.h says of tensors on a GPU. Their data is never looked at, so that machines
// without a GPU test it.
#include "ops/cuda_limits.h"
#include "tensor.h"
#include "testing.h"

namespace {

using chipmunk::ArgChecker;
using chipmunk::CudaLimits;
using chipmunk::CudaLimitsChecker;
using chipmunk::Device;
using chipmunk::DeviceType;
using chipmunk::Unsupported;
using testing::DType;
using testing::message_of;
using testing::TensorView;

constexpr Device kCpu{};
constexpr Device kGpu{DeviceType::kCuda, 1};

// What a check says of column-sparse attention's arguments on `device`.
template <class Body>
std::string message(const Body& body, Device device = kGpu,
                    const CudaLimits& limits = chipmunk::cuda_limits::kColumnSparseAttention) {
  const ArgChecker check("some_op");
  return message_of<Unsupported>([&] { body(CudaLimitsChecker(check, limits, device)); });
}

// bfloat16 [2, 3, 5, 64], contiguous, at some address on a GPU.
TensorView rows() {
  TensorView t;
  t.data = reinterpret_cast<void*>(uintptr_t{0x7f0000000000});
  t.dtype = DType::kBFloat16;
  t.device = kGpu;
  t.rank = 4;
  t.shape = {2, 3, 5, 64};
  t.strides = {960, 320, 64, 1};
  return t;
}

void add_number_tests(testing::Tests& tests) {
  using C = CudaLimitsChecker;
  const auto expect = [&](const std::string& got, const std::string& expected) {
    tests.check(got == expected, "expected '" + expected + "', got '" + got + "'");
  };
  tests.add("dtypes", [=] {
    expect(message([](const C& c) { c.dtype("q", DType::kBFloat16); }), "");
    expect(message([](const C& c) { c.dtype("q", DType::kFloat16); }), "");
    expect(message([](const C& c) { c.dtype("q", DType::kFloat32); }),
           "some_op: q: float32 on cuda:1; the CUDA kernels take bfloat16 and float16");
    expect(message([](const C& c) { c.dtype("q", DType::kFloat32); }, kCpu), "");
    expect(message([](const C& c) { c.dtype("q", DType::kFloat32); }, kGpu,
                   chipmunk::cuda_limits::kColumns),
           "");
  });
  tests.add("head dims and query groups", [=] {
    for (const int64_t head_dim : {64, 96, 128, 256}) {
      expect(message([=](const C& c) { c.head_dim("q", head_dim); }), "");
    }
    expect(message([](const C& c) { c.head_dim("q", 80); }),
           "some_op: q: head_dim 80 on cuda:1; the CUDA kernels take 64, 96, 128 and 256");
    expect(message([](const C& c) { c.head_dim("q", 80); }, kCpu), "");
    for (const int64_t group : {64, 128, 192, 256}) {
      expect(message([=](const C& c) { c.query_group("query_group", group); }), "");
    }
    for (const int64_t group : {1, 96, 320, 384}) {
      expect(message([=](const C& c) { c.query_group("query_group", group); }),
             "some_op: query_group: " + std::to_string(group) +
                 " on cuda:1; the CUDA kernels take 64, 128, 192 and 256");
    }
    expect(message([](const C& c) { c.query_group("query_group", 7); }, kCpu), "");
  });
  tests.add("scales, and numbers of 32 bits", [=] {
    expect(message([](const C& c) { c.softmax_scale(0.0f); }), "");
    expect(message([](const C& c) { c.softmax_scale(-1.0f); }),
           "some_op: softmax_scale: -1.000000 on cuda:1; the CUDA kernels take numbers >= 0");
    expect(message([](const C& c) { c.softmax_scale(-1.0f); }, kCpu), "");
    expect(
        message([](const C& c) { c.softmax_scale(-1.0f); }, kGpu, chipmunk::cuda_limits::kColumns),
        "");
    expect(message([](const C& c) { c.fits_int32("k", (int64_t{1} << 31) - 1, "keys"); }), "");
    expect(message([](const C& c) { c.fits_int32("k", int64_t{1} << 31, "keys"); }),
           "some_op: k: 2147483648 keys on cuda:1; the CUDA kernels take fewer than 2^31");
    expect(message([](const C& c) { c.fits_int32("k", int64_t{1} << 31, "keys"); }, kCpu), "");
  });
}

void add_row_tests(testing::Tests& tests) {
  const auto expect = [&](const TensorView& t, const std::string& expected, Device device = kGpu) {
    const std::string got = message(
        [&](const CudaLimitsChecker& c) { c.rows({{"k", &t}, {"rest.out", nullptr}}); }, device);
    tests.check(got == expected, "expected '" + expected + "', got '" + got + "'");
  };
  const std::string unaligned =
      "some_op: k: rows at any address on cuda:1; the CUDA kernels take rows that start at "
      "multiples of 16 bytes; pass a contiguous copy";
  tests.add("rows start at multiples of 16 bytes", [=] {
    expect(rows(), "");
    TensorView t = rows();
    t.data = static_cast<char*>(t.data) + 2;
    expect(t, unaligned);
    expect(t, "", kCpu);
    t.shape[1] = 0;
    expect(t, "");
    for (int dim = 0; dim < 3; ++dim) {
      t = rows();
      t.strides[static_cast<size_t>(dim)] += 8;
      expect(t, "");
      t.strides[static_cast<size_t>(dim)] -= 4;
      expect(t, unaligned);
      t.shape[static_cast<size_t>(dim)] = 1;
      expect(t, "");
    }
  });
  tests.add("rows less than 2^31 bytes apart", [=] {
    for (const int64_t sign : {1, -1}) {
      TensorView t = rows();
      t.strides[2] = sign * ((int64_t{1} << 30) - 8);
      expect(t, "");
      t.strides[2] = sign * (int64_t{1} << 30);
      expect(t, "some_op: k: rows " + std::to_string(2 * t.strides[2]) +
                    " bytes apart on cuda:1; the CUDA kernels take rows less than 2^31 bytes "
                    "apart; pass a contiguous copy");
      t.shape[2] = 1;
      expect(t, "");
    }
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  add_number_tests(tests);
  add_row_tests(tests);
  return tests.run();
}
