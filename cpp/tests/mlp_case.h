// One MLP's arguments, as the tests of the MLP ops make them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "chipmunk_kernels/mlp.h"
#include "tensor.h"

namespace testing {

using chipmunk::Activation;
using chipmunk::ColumnLists;
using chipmunk::Context;

inline constexpr int64_t kGroup = chipmunk::kMlpQueryGroup;
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

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

}  // namespace testing
