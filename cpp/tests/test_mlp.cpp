#include <algorithm>
#include <limits>

#include "chipmunk_kernels/mlp.h"
#include "mlp_case.h"
#include "tensor.h"
#include "testing.h"

namespace {

using chipmunk::Activation;
using testing::DType;
using testing::kGroup;
using testing::kNan;
using testing::Mlp;
using testing::Shape;
using testing::Tensor;

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
}

}  // namespace

int main() {
  testing::Tests tests;
  add_value_tests(tests);
  add_poison_tests(tests);
  add_whole_tests(tests);
  return tests.run();
}
