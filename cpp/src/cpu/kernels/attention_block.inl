// A block of columns against a panel of queries: scores, exponentials, and weights times values.
//
// Queries lie in the lanes. A panel is W vectors of them, W <= kPanelVectors: q^T and o^T are
// [head_dim][W * kLanes], the block's scores s^T and weights p^T are [kBlock][W * kLanes]. Keys and
// values are read row by row through pointers, one float broadcast at a time, so that gathered rows
// need no packing. Loops are unrolled where their own instructions would take a tenth of the core's
// time: it issues little more than the products when another thread shares it.

namespace chipmunk::cpu {
namespace {

// Columns at a time. The panel's weights (12 KiB with AVX-512) and the block's values stay in L1.
constexpr int kBlock = 64;

// Accumulators of the inner loops: kRows x kPanelVectors, with room for the panel's vectors and a
// broadcast.
#if defined(__FMA__) || defined(__aarch64__)
constexpr int kPanelVectors = 3;
#else
constexpr int kPanelVectors = 2;
#endif
constexpr int kRows = kVectorRegisters >= 32 ? 8 : 4;
static_assert(kBlock % kRows == 0 && 8 % kRows == 0, "whole steps");

constexpr float kHighest = 0x1.fffffep127f;  // finite

// From here on the rounding of a logarithm to base 2 may double a weight.
constexpr float kExtreme = 0x1p24f;

// Dot products times the unit are logarithms to base 2. A negative softmax_scale turns the sign of
// q instead, so that the largest dot product always belongs to the largest weight.
// Finite: inf times a difference of 0 would be NaN.
inline float unit_of(float softmax_scale) {
  const float unit = __builtin_fabsf(softmax_scale) * kLog2E;
  return unit < kHighest ? unit : kHighest;
}

// What turns those logarithms into natural ones: ln 2, less the rounding of the unit. A denormal
// unit is off by more than a rounding, but by at most 2^-22 in any score.
inline double natural_per_unit(float unit, float softmax_scale) {
  return unit >= 0x1p-126f ? __builtin_fabs((double)softmax_scale) / unit : 1.0 / (double)kLog2E;
}

// s^T of `n` columns, n <= kBlock rounded up to whole steps: `rows` holds a readable pointer for
// every column of the last step. largest[w]: maximum over the columns; NaN scores do not count.
template <int W>
inline void block_scores(const float* const* rows, int n, int head_dim, const float* q, float* s,
                         Vf (&largest)[W]) {
  // A copy: for all the compiler knows, s and `largest` overlap.
  Vf highest[W];
  for (int w = 0; w < W; ++w) highest[w] = broadcast(-__builtin_inff());
  for (int j = 0; j < n; j += kRows) {
    const float* k[kRows];
    for (int r = 0; r < kRows; ++r) k[r] = rows[j + r];
    Vf sum[kRows][W] = {};
#pragma GCC unroll 4
    for (int d = 0; d < head_dim; ++d) {
      Vf lanes[W];
      for (int w = 0; w < W; ++w) lanes[w] = load(q + (d * W + w) * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const Vf key = broadcast(k[r][d]);
        for (int w = 0; w < W; ++w) sum[r][w] += key * lanes[w];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int w = 0; w < W; ++w) {
        store(s + ((j + r) * W + w) * kLanes, sum[r][w]);
        highest[w] = max(sum[r][w], highest[w]);
      }
    }
  }
  for (int w = 0; w < W; ++w) largest[w] = highest[w];
}

// body(column, weights) for every column, `weights` its vectors 2^exponent(score, w). Two columns
// at a time: enough vectors to keep the core busy, few enough for its registers. Always inlined, as
// its callers here: a call would leave what exponent and body hold in memory.
template <int W, class Exponent, class Body>
__attribute__((always_inline)) inline void for_each_weights(const float* s, int n,
                                                            const Exponent& exponent,
                                                            const Body& body) {
  int j = 0;
  for (; j + 2 <= n; j += 2) {
    Vf x[2 * W];
    for (int i = 0; i < 2 * W; ++i) x[i] = exponent(load(s + (j * W + i) * kLanes), i % W);
    exp2_together(x);
    body(j, x);
    body(j + 1, x + W);
  }
  if (j < n) {
    Vf x[W];
    for (int w = 0; w < W; ++w) x[w] = exponent(load(s + (j * W + w) * kLanes), w);
    exp2_together(x);
    body(j, x);
  }
}

// True where |x| >= limit for any lane of any vector.
template <int W>
inline bool any_beyond(const Vf (&x)[W], float limit) {
  Vf largest = {};
  for (int w = 0; w < W; ++w) largest = max(largest, (Vf)((Vi)x[w] & 0x7fffffff));
  const Vi beyond = largest >= limit;
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)beyond) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)beyond) != 0;
#else
  int any = 0;
  for (int i = 0; i < kLanes; ++i) any |= beyond[i];
  return any != 0;
#endif
}

// What the scores of a row are measured from: the weights are 2^exponent(s, reference, unit).
//
// Fused multiply-add rounds s unit - r once, so r = largest unit serves as well as `largest` itself
// and saves an instruction. Without it, s unit would be rounded, too, and the difference is the one
// to multiply. Rows whose maximum is inf use 0, so that inf - inf does not arise: the weights are
// inf and 0 then, the lse inf and out NaN. Finite, so that -inf - -inf does not arise either.
//
// A panel whose references are `extreme` uses ExtremeReference instead.
struct SoftmaxReference {
#if defined(__FMA__) || defined(__aarch64__)
  static Vf of(Vf largest, float unit) {
    const Vf finite = largest == __builtin_inff() ? Vf{} : largest;
    return min(broadcast(kHighest), max(broadcast(-kHighest), finite * unit));
  }
  static Vf exponent(Vf s, Vf reference, float unit) { return s * unit - reference; }
  static Vf decay(Vf before, Vf reference, float /*unit*/) { return before - reference; }
  // Half of kExtreme: a decay from an extreme reference to one below this limit is 0, however the
  // extreme one was rounded.
  template <int W>
  static bool extreme(const Vf (&reference)[W]) {
    return any_beyond<W>(reference, kExtreme / 2);
  }
  // The reference of a row as a natural logarithm. The unit is softmax_scale log2(e), rounded.
  static double natural(float reference, float largest, float unit, float softmax_scale) {
    if (__builtin_fabsf(reference) >= kExtreme) {
      return largest * __builtin_fabs((double)softmax_scale);
    }
    return reference * natural_per_unit(unit, softmax_scale);
  }
#else
  static Vf of(Vf largest, float /*unit*/) { return largest == __builtin_inff() ? Vf{} : largest; }
  static Vf exponent(Vf s, Vf reference, float unit) { return (s - reference) * unit; }
  static Vf decay(Vf before, Vf reference, float unit) { return (before - reference) * unit; }
  // Below 2^100 no difference to a float32 overflows.
  template <int W>
  static bool extreme(const Vf (&reference)[W]) {
    return any_beyond<W>(reference, 0x1p100f);
  }
  static double natural(float reference, float, float /*unit*/, float softmax_scale) {
    return reference * __builtin_fabs((double)softmax_scale);
  }
#endif
};

// The same for scores of any size, at an instruction or two more for every weight.
struct ExtremeReference {
#if defined(__FMA__) || defined(__aarch64__)
  // Exponents are (s - shift) unit - base. A row has a base, SoftmaxReference's with its bits, or,
  // from kExtreme on, where the rounding of a base would show, a shift: the exact `largest`.
  Vf shift, base;

  static ExtremeReference of(Vf largest, float unit) {
    const Vf base = SoftmaxReference::of(largest, unit);
    const Vi is_extreme = (Vf)((Vi)base & 0x7fffffff) >= kExtreme;
    return {(Vf)((Vi)largest & is_extreme), (Vf)((Vi)base & ~is_extreme)};
  }
  Vf exponent(Vf s, float unit) const { return (s - shift) * unit - base; }
  Vf decay(const ExtremeReference& before, float unit) const {
    return (before.shift - shift) * unit + (before.base - base);
  }
#else
  // Halves: the difference of two floats may overflow, that of their halves does not.
  Vf half;

  static ExtremeReference of(Vf largest, float unit) {
    return {SoftmaxReference::of(largest, unit) * 0.5f};
  }
  Vf exponent(Vf s, float unit) const { return (s * 0.5f - half) * unit * 2.0f; }
  Vf decay(const ExtremeReference& before, float unit) const {
    return (before.half - half) * unit * 2.0f;
  }
#endif
};

// s becomes the weights, 2^exponent(s, w); total[w] is their sum over the columns.
template <int W, class Exponent>
__attribute__((always_inline)) inline void block_weights(float* s, int n, const Exponent& exponent,
                                                         Vf (&total)[W]) {
  Vf sum[W] = {};
  for_each_weights<W>(s, n, exponent, [&](int j, const Vf* weights) {
    for (int w = 0; w < W; ++w) {
      store(s + (j * W + w) * kLanes, weights[w]);
      sum[w] += weights[w];
    }
  });
  for (int w = 0; w < W; ++w) total[w] = sum[w];
}

// Weights relative to `reference`, that of the maxima.
template <int W>
inline void ordinary_weights(float* s, int n, float unit, const Vf (&reference)[W],
                             Vf (&total)[W]) {
  // A copy: for all the compiler knows, s overlaps it.
  Vf from[W];
  for (int w = 0; w < W; ++w) from[w] = reference[w];
  block_weights<W>(
      s, n, [&](Vf score, int w) { return SoftmaxReference::exponent(score, from[w], unit); },
      total);
}

// Weights relative to the maxima, for scores of any size, and `decay`, a logarithm to base 2, of
// what is relative to the maxima `before`. Not inlined: no register of the ordinary path is for it.
template <int W>
__attribute__((noinline, cold)) void extreme_weights(float* s, int n, float unit,
                                                     const Vf (&before)[W], const Vf (&largest)[W],
                                                     Vf (&decay)[W], Vf (&total)[W]) {
  ExtremeReference from[W];
  for (int w = 0; w < W; ++w) {
    from[w] = ExtremeReference::of(largest[w], unit);
    decay[w] = from[w].decay(ExtremeReference::of(before[w], unit), unit);
  }
  block_weights<W>(s, n, [&](Vf score, int w) { return from[w].exponent(score, unit); }, total);
}

// Lanes that count in a sum, all bits 1, and what their values are multiplied by, 0 for the others.
template <int W>
struct LaneFactors {
  Vi counted[W];
  Vf factor[W];

  Vf of(int w, Vf value) const { return (Vf)((Vi)value & counted[w]) * factor[w]; }
};

// sums [kBlock][kLanes] += 2^exponent(s, w) by the factors, over the panel's vectors.
template <int W, class Exponent>
__attribute__((always_inline)) inline void block_add_exponentials(const float* s, int n,
                                                                  const Exponent& exponent,
                                                                  const LaneFactors<W>& factors,
                                                                  float* sums) {
  for_each_weights<W>(s, n, exponent, [&](int j, const Vf* weights) {
    Vf sum = load(sums + j * kLanes);
    for (int w = 0; w < W; ++w) sum += factors.of(w, weights[w]);
    store(sums + j * kLanes, sum);
  });
}

// sums [kBlock][kLanes] += p by the factors, over the panel's vectors.
template <int W>
inline void block_add_weights(const float* p, int n, const LaneFactors<W>& factors, float* sums) {
  for (int j = 0; j < n; ++j) {
    Vf sum = load(sums + j * kLanes);
    for (int w = 0; w < W; ++w) sum += factors.of(w, load(p + (j * W + w) * kLanes));
    store(sums + j * kLanes, sum);
  }
}

// o = o * decay + v^T p^T. The block is summed from zero, so that rounding errors grow with the
// number of blocks rather than of columns.
template <int W>
inline void block_times_values(const float* const* rows, int n, int head_dim, const float* p,
                               const Vf (&decay)[W], float* o) {
  for (int d = 0; d < head_dim; d += kRows) {
    Vf sum[kRows][W] = {};
#pragma GCC unroll 4
    for (int j = 0; j < n; ++j) {
      const float* const v = rows[j] + d;
      Vf lanes[W];
      for (int w = 0; w < W; ++w) lanes[w] = load(p + (j * W + w) * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const Vf value = broadcast(v[r]);
        for (int w = 0; w < W; ++w) sum[r][w] += value * lanes[w];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int w = 0; w < W; ++w) {
        float* const at = o + ((d + r) * W + w) * kLanes;
        store(at, load(at) * decay[w] + sum[r][w]);
      }
    }
  }
}

// A row of head_dim elements as floats: where it lies, or widened into `scratch`.
inline const float* row_as_floats(Float32, const float* row, int, float*) { return row; }

template <class Type>
inline const float* row_as_floats(Type, const uint16_t* row, int head_dim, float* scratch) {
  int d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) store(scratch + d, Type::load(row + d));
  for (; d < head_dim; ++d) scratch[d] = Type::widen(row[d]);
  return scratch;
}

// Pointers to the rows of `n` columns of k or v from position `first` of the tile's list on, and
// copies of the last one up to the end of block_scores' last step. `scratch` [kBlock][head_dim].
template <class Type>
inline void gather_rows(Type type, const void* data, int64_t stride, const AttentionTile& tile,
                        int64_t first, int n, float* scratch, const float* (&rows)[kBlock]) {
  const auto* const base = (const typename Type::Storage*)data;
  for (int j = 0; j < n; ++j) {
    const int64_t column = tile.columns == nullptr ? first + j : tile.columns[first + j];
    rows[j] =
        row_as_floats(type, base + column * stride, tile.head_dim, scratch + j * tile.head_dim);
  }
  for (int j = n; j % kRows != 0; ++j) rows[j] = rows[n - 1];
}

// Asks for the listed rows of a block, into L2: their addresses are as good as random, so that no
// prefetcher finds them. 5% at 90% sparsity (Zen 4, 2 x 4096 x 64); into L1, nothing.
template <class Type>
inline void prefetch_rows(Type, const void* data, int64_t stride, const AttentionTile& tile,
                          int64_t first) {
  if (tile.columns == nullptr) return;
  const auto* const base = (const typename Type::Storage*)data;
  const int64_t end = first + kBlock < tile.count ? first + kBlock : tile.count;
  constexpr int kStep = 64 / sizeof(*base);
  for (int64_t j = first; j < end; ++j) {
    const auto* const row = base + tile.columns[j] * stride;
    for (int d = 0; d < tile.head_dim; d += kStep) __builtin_prefetch(row + d, 0, 2);
  }
}

}  // namespace
}  // namespace chipmunk::cpu
