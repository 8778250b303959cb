#include <algorithm>
#include <limits>
#include <numeric>

#include "chipmunk_kernels/mlp.h"
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
using testing::Tensor;
using testing::TensorView;

constexpr int64_t kGroup = chipmunk::kMlpQueryGroup;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr Activation kActivations[] = {Activation::kGeluTanh, Activation::kGelu,
                                       Activation::kSilu,     Activation::kRelu,
                                       Activation::kSwiglu,   Activation::kGeglu};
constexpr DType kDtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double silu(double x) { return x / (1.0 + std::exp(-x)); }

double activate(Activation activation, double value, double gate) {
  switch (activation) {
    case Activation::kGeluTanh:
      return 0.5 * value *
             (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (value + 0.044715 * value * value * value)));
    case Activation::kGelu:
      return gelu(value);
    case Activation::kSilu:
      return silu(value);
    case Activation::kRelu:
      return std::max(value, 0.0);
    case Activation::kSwiglu:
      return value * silu(gate);
    case Activation::kGeglu:
      return value * gelu(gate);
  }
  return 0.0;
}

// Half the distance between neighbours near 1.
double half_ulp(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}
// Half the distance between the smallest numbers; float32 sums never come near it.
double least(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-25 : 1e-38; }

struct Shape {
  int64_t batch, tokens, channels, hidden, out_channels, capacity;
};

// One MLP's arguments, some with strides that are not their shapes', and poison wherever no op has
// any business.
struct Mlp {
  Shape shape;
  Activation activation;
  DType dtype;
  int64_t groups;
  bool gated;
  Tensor x, w1, b1, w2t, indices, counts, cache, delta, out;
  bool bias;

  Mlp(Shape s, Activation act, DType type, uint32_t seed, bool strided, bool with_bias = true)
      : shape(s),
        activation(act),
        dtype(type),
        groups((s.tokens + kGroup - 1) / kGroup),
        gated(chipmunk::is_gated(act)),
        x(padded({s.batch, s.tokens, s.channels}, strided)),
        w1(padded({gated ? 2 * s.hidden : s.hidden, s.channels}, strided)),
        b1(type, {gated ? 2 * s.hidden : s.hidden}),
        w2t(padded({s.hidden, s.out_channels}, strided)),
        indices(DType::kInt32, {s.batch, groups, s.capacity}),
        counts(DType::kInt32, {s.batch, groups}),
        cache(padded({s.batch, s.hidden, s.tokens}, strided)),
        delta(padded({s.batch, groups, s.capacity, kGroup}, strided)),
        out(padded({s.batch, s.tokens, s.out_channels}, strided)),
        bias(with_bias) {
    std::mt19937 random(seed);
    x.fill_normal(random);
    w1.fill_normal(random, 1.0 / std::sqrt(static_cast<double>(s.channels) + 1.0));
    b1.fill_normal(random);
    w2t.fill_normal(random);
    cache.fill_normal(random);
    out.fill_normal(random);
    delta.fill(kNan);
    indices.fill(std::numeric_limits<int32_t>::max());
    const int64_t most = std::min(s.capacity, s.hidden);
    for (int64_t i = 0; i < s.batch * groups; ++i) {
      // None and all first, then anything.
      const int64_t count = i == 0   ? most
                            : i == 1 ? 0
                                     : static_cast<int64_t>(random()) % (most + 1);
      set_list(i, random_list(random, count));
    }
  }

  // The last dimension continues past the shape, and dimensions before it are reversed in memory.
  Tensor padded(std::vector<int64_t> dims, bool strided) const {
    if (!strided) return {dtype, dims};
    const int32_t last = static_cast<int32_t>(dims.size()) - 1;
    const int64_t size = dims[static_cast<size_t>(last)];
    dims[static_cast<size_t>(last)] = size + 5;
    if (last >= 2) std::swap(dims[0], dims[1]);
    Tensor whole(dtype, dims);
    whole.fill(kNan);
    Tensor part = whole.slice(last, 3, 3 + size);
    return last >= 2 ? part.transposed(0, 1) : part;
  }

  std::vector<int64_t> random_list(std::mt19937& random, int64_t count) const {
    std::vector<int64_t> list(static_cast<size_t>(shape.hidden));
    std::iota(list.begin(), list.end(), 0);
    std::shuffle(list.begin(), list.end(), random);
    list.resize(static_cast<size_t>(count));
    std::sort(list.begin(), list.end());
    return list;
  }

  void set_list(int64_t i, const std::vector<int64_t>& list) const {
    counts.set_flat(i, static_cast<double>(list.size()));
    for (size_t p = 0; p < list.size(); ++p) {
      indices.set_flat(i * shape.capacity + static_cast<int64_t>(p), static_cast<double>(list[p]));
    }
  }

  int64_t count(int64_t b, int64_t g) const { return static_cast<int64_t>(counts.get({b, g})); }
  int64_t column(int64_t b, int64_t g, int64_t p) const {
    return static_cast<int64_t>(indices.get({b, g, p}));
  }

  ColumnLists lists() const {
    return {indices.view(), counts.view(), static_cast<int32_t>(kGroup)};
  }
  void fc1(int threads = 0) const {
    chipmunk::column_sparse_fc1(x, w1, bias ? &b1.view() : nullptr, lists(), activation, cache,
                                delta, Context{.cpu_threads = threads});
  }
  void fc2(int threads = 0) const {
    chipmunk::column_sparse_fc2(delta, w2t, lists(), out, Context{.cpu_threads = threads});
  }
  void whole(int threads = 0) const {
    chipmunk::column_sparse_mlp(x, w1, bias ? &b1.view() : nullptr, w2t, lists(), activation,
                                {cache, out}, delta, Context{.cpu_threads = threads});
  }
};

// Compares with double loops; adds what differs to `tests`. Values that came out infinite or NaN
// must be so in the reference.
void check_fc1(testing::Tests& tests, const Mlp& m, const Tensor& old_cache,
               const std::string& name) {
  const Shape& s = m.shape;
  const std::vector<double> x = m.x.numbers(), w1 = m.w1.numbers();
  const size_t channels = static_cast<size_t>(s.channels);
  double worst = 0.0;  // error over its bound
  bool delta_ok = true, padding_ok = true, untouched_ok = true;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t g = 0; g < m.groups; ++g) {
      std::vector<bool> selected(static_cast<size_t>(s.hidden));
      for (int64_t p = 0; p < m.count(b, g); ++p) {
        const int64_t f = m.column(b, g, p);
        selected[static_cast<size_t>(f)] = true;
        for (int64_t r = 0; r < kGroup; ++r) {
          const int64_t token = g * kGroup + r;
          const double change = m.delta.get({b, g, p, r});
          if (token >= s.tokens) {
            padding_ok &= change == 0.0;
            continue;
          }
          double z[2] = {}, magnitude[2] = {};
          for (int half = 0; half < (m.gated ? 2 : 1); ++half) {
            const int64_t row = half * s.hidden + f;
            z[half] = m.bias ? m.b1.get({row}) : 0.0;
            magnitude[half] = std::fabs(z[half]);
            const double* x_row = x.data() + static_cast<size_t>(b * s.tokens + token) * channels;
            const double* w1_row = w1.data() + static_cast<size_t>(row) * channels;
            for (size_t k = 0; k < channels; ++k) {
              const double product = x_row[k] * w1_row[k];
              z[half] += product;
              magnitude[half] += std::fabs(product);
            }
          }
          const double expected = activate(m.activation, z[0], z[1]);
          const double got = m.cache.get({b, f, token});
          // One rounding to the dtype, and what a float32 sum of random signs and an activation's
          // slope (at most 1.13) make of the terms.
          const double sum_error = 0x1p-24 * (4.0 + std::sqrt(static_cast<double>(s.channels)));
          const double partner = m.gated ? std::fabs(z[1]) + magnitude[1] : 1.0;
          const double bound =
              std::fabs(expected) * half_ulp(m.dtype) * 1.01 + least(m.dtype) +
              sum_error * 1.2 *
                  (magnitude[0] * partner + (m.gated ? std::fabs(z[0]) * magnitude[1] : 0.0));
          worst = std::max(worst, std::fabs(got - expected) / bound);
          const double old = old_cache.get({b, f, token});
          delta_ok &= change == testing::rounded(got - old, m.dtype);
        }
      }
      for (int64_t f = 0; f < s.hidden; ++f) {
        for (int64_t t = g * kGroup; t < std::min(s.tokens, (g + 1) * kGroup); ++t) {
          if (!selected[static_cast<size_t>(f)]) {
            untouched_ok &= m.cache.get({b, f, t}) == old_cache.get({b, f, t});
          }
        }
      }
      for (int64_t p = m.count(b, g); p < s.capacity; ++p) {
        untouched_ok &= std::isnan(m.delta.get({b, g, p, 0}));
      }
    }
  }
  tests.check(worst <= 1.0, name + ": error over bound " + std::to_string(worst));
  tests.check(delta_ok, name + ": delta is the rounded change of the cache");
  tests.check(padding_ok, name + ": delta of tokens past the end is 0");
  tests.check(untouched_ok, name + ": unselected rows are left alone");
}

void check_fc2(testing::Tests& tests, const Mlp& m, const Tensor& old_out,
               const std::string& name) {
  const Shape& s = m.shape;
  const std::vector<double> w2t = m.w2t.numbers();
  double worst = 0.0;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t token = 0; token < s.tokens; ++token) {
      const int64_t g = token / kGroup;
      std::vector<double> delta;
      std::vector<const double*> rows;
      for (int64_t p = 0; p < m.count(b, g); ++p) {
        delta.push_back(m.delta.get({b, g, p, token % kGroup}));
        rows.push_back(w2t.data() + m.column(b, g, p) * s.out_channels);
      }
      for (int64_t n = 0; n < s.out_channels; ++n) {
        double expected = old_out.get({b, token, n});
        double magnitude = std::fabs(expected);
        for (size_t p = 0; p < rows.size(); ++p) {
          const double product = delta[p] * rows[p][n];
          expected += product;
          magnitude += std::fabs(product);
        }
        const double terms = static_cast<double>(m.count(b, g));
        const double bound = std::fabs(expected) * half_ulp(m.dtype) * 1.01 + least(m.dtype) +
                             0x1p-24 * (4.0 + std::sqrt(terms)) * magnitude;
        worst = std::max(worst, std::fabs(m.out.get({b, token, n}) - expected) / bound);
      }
    }
  }
  tests.check(worst <= 1.0, name + ": error over bound " + std::to_string(worst));
}

std::string describe(const Shape& s, Activation activation, DType dtype) {
  return std::string(chipmunk::name_of(dtype)) + " activation " +
         std::to_string(static_cast<int>(activation)) + " [" + std::to_string(s.batch) + ", " +
         std::to_string(s.tokens) + ", " + std::to_string(s.channels) + "], hidden " +
         std::to_string(s.hidden) + ", out " + std::to_string(s.out_channels);
}

void check_both(testing::Tests& tests, const Mlp& m, const std::string& name, int threads = 0) {
  const Tensor old_cache = m.cache.clone();
  m.fc1(threads);
  check_fc1(tests, m, old_cache, name + ", fc1");
  const Tensor old_out = m.out.clone();
  m.fc2(threads);
  check_fc2(tests, m, old_out, name + ", fc2");
}

void add_value_tests(testing::Tests& tests) {
  tests.add("fc1 and fc2 against double loops: every dtype and activation", [&] {
    const Shape shape{2, 200, 48, 70, 100, 70};
    for (const DType dtype : kDtypes) {
      for (const Activation activation : kActivations) {
        check_both(tests, Mlp(shape, activation, dtype, 7, false),
                   describe(shape, activation, dtype));
      }
    }
  });

  tests.add("odd sizes, strides, no bias, threads", [&] {
    const Shape shapes[] = {
        {1, 1, 1, 1, 1, 1},       {1, 127, 7, 13, 47, 20},   {2, 129, 65, 9, 49, 9},
        {1, 300, 33, 100, 3, 40}, {3, 128, 16, 31, 144, 31}, {1, 16, 64, 6, 15, 6},
        {2, 17, 5, 250, 97, 250},
    };
    uint32_t seed = 1;
    for (const Shape& shape : shapes) {
      for (const DType dtype : kDtypes) {
        const Activation activation = kActivations[seed % 6];
        const Mlp mlp(shape, activation, dtype, seed, seed % 2 == 0, seed % 3 != 0);
        check_both(tests, mlp, describe(shape, activation, dtype), static_cast<int>(seed % 4));
        ++seed;
      }
    }
  });

  tests.add("long lists and many channels: several blocks of each loop", [&] {
    const Shape shape{1, 40, 20, 1300, 850, 1300};
    for (const DType dtype : kDtypes) {
      check_both(tests, Mlp(shape, Activation::kGeluTanh, dtype, 11, false),
                 describe(shape, Activation::kGeluTanh, dtype));
    }
  });

  tests.add("no channels: new values come from the bias alone", [&] {
    const Shape shape{1, 5, 0, 4, 3, 4};
    check_both(tests, Mlp(shape, Activation::kGelu, DType::kFloat32, 3, false),
               describe(shape, Activation::kGelu, DType::kFloat32));
  });

  tests.add("empty batch, tokens, lists and outputs change nothing", [&] {
    for (const Shape& shape : {Shape{0, 5, 4, 3, 2, 3}, Shape{1, 0, 4, 3, 2, 3},
                               Shape{1, 5, 4, 3, 2, 0}, Shape{1, 5, 4, 3, 0, 3}}) {
      const Mlp mlp(shape, Activation::kRelu, DType::kFloat32, 1, false);
      check_both(tests, mlp, describe(shape, Activation::kRelu, DType::kFloat32));
    }
  });

  tests.add("the result does not depend on the number of threads", [&] {
    const Shape shape{1, 256, 32, 400, 300, 400};
    const Mlp one(shape, Activation::kGelu, DType::kFloat32, 5, false);
    const Mlp many(shape, Activation::kGelu, DType::kFloat32, 5, false);
    one.fc1(1), many.fc1(7);
    one.fc2(1), many.fc2(7);
    tests.check(one.cache.same_bits(many.cache), "cache");
    tests.check(one.out.same_bits(many.out), "out");
  });

  tests.add("the activations themselves, over their range", [&] {
    // One hidden unit, one channel: pre-activations are x.
    const int64_t n = 4096;
    for (const Activation activation : kActivations) {
      Mlp m({1, n, 1, 1, 1, 1}, activation, DType::kFloat32, 1, false, false);
      m.w1.fill(1.0);
      for (int64_t g = 0; g < m.groups; ++g) m.set_list(g, {0});
      m.cache.fill(0.0);
      for (int64_t i = 0; i < n; ++i) {
        const double at = (static_cast<double>(i) - n / 2) / (n / 2);
        m.x.set({0, i, 0}, i % 2 ? at * 6.0 : std::copysign(std::pow(std::fabs(at), 3) * 110, at));
      }
      m.fc1();
      double worst = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        const double x = m.x.get({0, i, 0});
        const double expected = activate(activation, x, x);
        const double error = std::fabs(m.cache.get({0, 0, i}) - expected);
        // Relative to the identity, which all of them approach; x^2 for the gated.
        const double scale = std::fabs(x) * (m.gated ? std::fabs(x) : 1.0) + 1e-30;
        worst = std::max(worst, error / scale);
      }
      tests.check(worst < 2.5 * 0x1p-24,
                  "activation " + std::to_string(static_cast<int>(activation)) + ": error " +
                      std::to_string(worst * 0x1p24) + " of 2^-24");
    }
  });

  tests.add("infinities and NaN come out as the formulas give them", [&] {
    const double inputs[] = {kInf, -kInf, kNan, 0.0, -0.0, 1e30, -1e30, 3e38, -3e38};
    for (const Activation activation : kActivations) {
      Mlp m({1, 9, 1, 1, 1, 1}, activation, DType::kFloat32, 1, false, false);
      m.w1.fill(1.0);
      m.cache.fill(0.0);
      for (int64_t i = 0; i < 9; ++i) m.x.set({0, i, 0}, inputs[i]);
      m.fc1();
      for (int64_t i = 0; i < 9; ++i) {
        const double got = m.cache.get({0, 0, i});
        double expected = activate(activation, inputs[i], inputs[i]);
        // The double formulas do not overflow where float32 must.
        if (std::isfinite(expected)) expected = testing::rounded(expected, DType::kFloat32);
        // relu's reference drops a NaN; -inf * 0 is NaN in the others.
        if (std::isnan(inputs[i])) expected = kNan;
        const bool same =
            std::isnan(expected)
                ? std::isnan(got)
                : std::fabs(got - expected) <= 1e-6 * std::fabs(expected) || got == expected;
        tests.check(same, "activation " + std::to_string(static_cast<int>(activation)) + " of " +
                              std::to_string(inputs[i]) + ": expected " + std::to_string(expected) +
                              ", got " + std::to_string(got));
      }
    }
  });
}

void add_poison_tests(testing::Tests& tests) {
  tests.add("NaN in unselected rows reaches no output", [&] {
    for (const DType dtype : kDtypes) {
      const Shape shape{1, 256, 24, 64, 60, 64};
      const Mlp m(shape, Activation::kGeglu, dtype, 9, false);
      std::mt19937 random(4);
      m.set_list(0, m.random_list(random, 20));
      m.set_list(1, {});
      for (int64_t f = 0; f < shape.hidden; ++f) {
        bool selected = false;
        for (int64_t p = 0; p < 20; ++p) selected |= m.column(0, 0, p) == f;
        if (selected) continue;
        for (int64_t k = 0; k < shape.channels; ++k) {
          m.w1.set({f, k}, kNan);
          m.w1.set({shape.hidden + f, k}, kInf);
        }
        m.b1.set({f}, kNan);
        for (int64_t n = 0; n < shape.out_channels; ++n) m.w2t.set({f, n}, kNan);
        for (int64_t t = 0; t < shape.tokens; ++t) m.cache.set({0, f, t}, kNan);
      }
      const Tensor old_out = m.out.clone();
      m.fc1();
      m.fc2();
      bool finite = true;
      for (int64_t i = 0; i < m.out.view().numel(); ++i) {
        finite &= std::isfinite(m.out.get_flat(i));
      }
      tests.check(finite, std::string(chipmunk::name_of(dtype)) + ": out is finite");
      check_fc2(tests, m, old_out, chipmunk::name_of(dtype));
      tests.check(m.out.slice(1, 128, 256).same_bits(old_out.slice(1, 128, 256)),
                  "a group with an empty list keeps its bits");
    }
  });

  tests.add("a NaN token stays in its own row", [&] {
    const Shape shape{1, 100, 24, 64, 60, 64};
    const Mlp m(shape, Activation::kSilu, DType::kFloat32, 9, false);
    m.x.set({0, 37, 5}, kNan);
    m.fc1();
    m.fc2();
    for (int64_t t = 0; t < shape.tokens; ++t) {
      for (int64_t n = 0; n < shape.out_channels; ++n) {
        tests.check(std::isnan(m.out.get({0, t, n})) == (t == 37), "token " + std::to_string(t));
      }
    }
  });
}

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
             TensorView x = m.x;
             x.device = {chipmunk::DeviceType::kCuda, 0};
             chipmunk::column_sparse_fc1(x, m.w1, nullptr, m.lists(), m.activation, m.cache,
                                         m.delta, Context{});
           }),
           "column_sparse_fc1: x: float32 runs on the CPU only; use bfloat16 or float16 on a GPU");
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
    expect(message([&](A& a) { a.out.data = a.delta.data; }),
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

void add_whole_tests(testing::Tests& tests) {
  tests.add("column_sparse_mlp: fc1, then fc2", [&] {
    for (const Activation activation : {Activation::kSilu, Activation::kGeglu}) {
      for (const DType dtype : kDtypes) {
        const Shape shape{2, 200, 24, 40, 30, 20};
        const Mlp apart(shape, activation, dtype, 5, true),
            whole(shape, activation, dtype, 5, true);
        apart.fc1();
        apart.fc2();
        whole.whole();
        tests.check(whole.cache.same_bits(apart.cache), "activations");
        tests.check(whole.out.same_bits(apart.out), "output");
      }
    }
    const Mlp no_output({1, 130, 8, 10, 0, 5}, Activation::kRelu, DType::kFloat32, 2, false);
    const Mlp expected({1, 130, 8, 10, 0, 5}, Activation::kRelu, DType::kFloat32, 2, false);
    no_output.whole();
    expected.fc1();
    tests.check(no_output.cache.same_bits(expected.cache), "without output channels");
  });

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
    expect([&](A& a) { a.x.data = a.cache.output.data; },
           "cache.output: expected memory apart from x" + overlap);
    tests.check(m.cache.same_bits(old_cache) && m.out.same_bits(old_out), "nothing was written");
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  add_value_tests(tests);
  add_poison_tests(tests);
  add_message_tests(tests);
  add_whole_tests(tests);
  return tests.run();
}
