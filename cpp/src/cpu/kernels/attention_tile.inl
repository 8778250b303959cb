// Attention of one tile of queries over its columns: online softmax, block after block.

namespace chipmunk::cpu {
namespace {

struct TileScratch {
  float* q;          // panels of [head_dim][W * kLanes]
  float* o;          // panels like q
  float* largest;    // [kTileQueries] running maximum of s
  float* total;      // [kTileQueries] sum of the weights
  float* reference;  // [kTileQueries] of the column sums, a logarithm to base 2
  float* shift;      // [kTileQueries] of the column sums, subtracted from the dot products
  float* factor;     // [kTileQueries] of the column sums
  float* s;          // [kBlock][kPanelVectors * kLanes]
  float* sums;       // [kBlock][kLanes]
  float* keys;       // [kBlock][head_dim]
  float* values;     // [kBlock][head_dim]
};

// A multiple of 16 floats for every array keeps them all on 64-byte boundaries.
inline int64_t lay_out(TileScratch& scratch, float* memory, int32_t head_dim) {
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* const at = memory == nullptr ? nullptr : memory + used;
    used += (floats + 15) / 16 * 16;
    return at;
  };
  scratch.q = take((int64_t)kTileQueries * head_dim);
  scratch.o = take((int64_t)kTileQueries * head_dim);
  scratch.largest = take(kTileQueries);
  scratch.total = take(kTileQueries);
  scratch.reference = take(kTileQueries);
  scratch.shift = take(kTileQueries);
  scratch.factor = take(kTileQueries);
  scratch.s = take(kBlock * kPanelVectors * kLanes);
  scratch.sums = take(kBlock * kLanes);
  scratch.keys = take((int64_t)kBlock * head_dim);
  scratch.values = take((int64_t)kBlock * head_dim);
  return used;
}

int64_t scratch_floats(int32_t head_dim) {
  TileScratch scratch;
  return lay_out(scratch, nullptr, head_dim);
}

inline bool is_infinite(float x) { return __builtin_fabsf(x) == __builtin_inff(); }

// Calls body.template operator()<W>(first) for every panel of the tile; its queries start at
// first * kLanes.
template <class Body>
inline void for_each_panel(int queries, const Body& body) {
  const int vectors = (queries + kLanes - 1) / kLanes;
  int first = 0;
  for (; first + kPanelVectors <= vectors; first += kPanelVectors) {
    body.template operator()<kPanelVectors>(first);
  }
  if constexpr (kPanelVectors > 2) {
    if (vectors - first == 2) body.template operator()<2>(first);
  }
  if (vectors - first == 1) body.template operator()<1>(first);
}

inline int64_t row_of(const AttentionTile& tile, int query) {
  return tile.rows == nullptr ? query : tile.rows[query];
}

// q^T into panels. Lanes past the last query are 0.
template <class Type>
inline void load_queries(const AttentionTile& tile, float* q) {
  const auto* const base = (const typename Type::Storage*)tile.q;
  const float sign = tile.softmax_scale < 0.0f ? -1.0f : 1.0f;
  for_each_panel(tile.queries, [&]<int W>(int first) {
    float* const panel = q + (int64_t)first * kLanes * tile.head_dim;
    for (int w = 0; w < W; ++w) {
      for (int d = 0; d < tile.head_dim; d += kLanes) {
        const int dims = tile.head_dim - d < kLanes ? tile.head_dim - d : kLanes;
        Vf rows[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const int query = (first + w) * kLanes + i;
          if (query >= tile.queries) {
            rows[i] = Vf{};
          } else {
            const auto* const at = base + row_of(tile, query) * tile.q_stride + d;
            rows[i] = dims == kLanes ? Type::load(at) : load_first<Type>(at, dims);
          }
        }
        transpose(rows);
        for (int i = 0; i < dims; ++i) store(panel + ((d + i) * W + w) * kLanes, rows[i] * sign);
      }
    }
  });
}

// How each query's row of `out` comes from its sums and from the rest.
struct OutFactors {
  float own[kTileQueries];
  float rest[kTileQueries];
  bool has_own[kTileQueries], has_rest[kTileQueries];  // if not, the row is not looked at
};

// out[query] = o^T[query] own[query] + rest_out[query] rest[query]
template <class Type>
inline void store_out(const AttentionTile& tile, const float* o, const OutFactors& factors) {
  auto* const out = (typename Type::Storage*)tile.out;
  const auto* const rest = (const typename Type::Storage*)tile.rest_out;
  for_each_panel(tile.queries, [&]<int W>(int first) {
    const float* const panel = o + (int64_t)first * kLanes * tile.head_dim;
    for (int w = 0; w < W; ++w) {
      const int base = (first + w) * kLanes;
      const Vf own = load(factors.own + base);
      const int rows_left = tile.queries - base < kLanes ? tile.queries - base : kLanes;
      for (int d = 0; d < tile.head_dim; d += kLanes) {
        const int dims = tile.head_dim - d < kLanes ? tile.head_dim - d : kLanes;
        Vf rows[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          rows[i] = i < dims ? load(panel + ((d + i) * W + w) * kLanes) * own : Vf{};
        }
        transpose(rows);
        for (int i = 0; i < rows_left; ++i) {
          Vf row = factors.has_own[base + i] ? rows[i] : Vf{};
          if (factors.has_rest[base + i]) {
            const auto* const from = rest + row_of(tile, base + i) * tile.rest_out_stride + d;
            row += (dims == kLanes ? Type::load(from) : load_first<Type>(from, dims)) *
                   factors.rest[base + i];
          }
          auto* const to = out + row_of(tile, base + i) * tile.out_stride + d;
          if (dims == kLanes) {
            Type::store(to, row);
          } else {
            store_first<Type>(to, row, dims);
          }
        }
      }
    }
  });
}

// log(exp(a) + exp(b)), and the shares of the two in the sum. A part whose lse is -inf has share 0.
inline float merge_lse(float a, float b, float& share_a, float& share_b) {
  const float inf = __builtin_inff();
  if (a == -inf || b == -inf) {
    share_a = a == -inf ? 0.0f : 1.0f;
    share_b = b == -inf ? 0.0f : 1.0f;
    // exp(lse - lse) is 1, but NaN for an infinite or NaN lse.
    if (a != -inf) share_a += a - a;
    if (b != -inf) share_b += b - b;
    return a == -inf ? b : a;
  }
  const float high = a > b ? a : b;
  const float exp_a = __builtin_expf(a - high), exp_b = __builtin_expf(b - high);
  const float sum = exp_a + exp_b;
  share_a = exp_a / sum;
  share_b = exp_b / sum;
  if (high == inf && a == a && b == b) return inf;
  return high + __builtin_log1pf(a > b ? exp_b : exp_a);
}

// The same for an lse that is not rounded yet: the rounding of a large one would show in the
// shares.
inline float merge_exact_lse(double a, float b, float& share_a, float& share_b) {
  const double inf = __builtin_inf();
  const bool is_large = __builtin_fabs(a) >= 0x1p23 && __builtin_fabs(a) < inf;
  if (!is_large || !(b < inf)) return merge_lse((float)a, b, share_a, share_b);
  const double high = a > b ? a : b;
  return (float)(high + merge_lse((float)(a - high), (float)(b - high), share_a, share_b));
}

// Writes lse and out from the sums over all columns.
template <class Type>
inline void finish(const AttentionTile& tile, const TileScratch& scratch) {
  OutFactors factors = {};
  const float unit = unit_of(tile.softmax_scale);
  float reference[kTileQueries];
  for (int i = 0; i < tile.queries; i += kLanes) {
    store(reference + i, SoftmaxReference::of(load(scratch.largest + i), unit));
  }
  for (int i = 0; i < tile.queries; ++i) {
    const float total = scratch.total[i];
    const double natural =
        SoftmaxReference::natural(reference[i], scratch.largest[i], unit, tile.softmax_scale);
    const double own_lse = natural + (double)__builtin_logf(total);
    float lse = (float)own_lse;
    // No score above -inf: 0, though a NaN or inf in v shows as in 0 * v unless there is a rest.
    factors.own[i] = total == 0.0f ? 0.0f : 1.0f / total;
    factors.has_own[i] = total != 0.0f || tile.rest_out == nullptr;
    if (tile.rest_out != nullptr) {
      const float rest_lse = tile.rest_lse[row_of(tile, i) * tile.rest_lse_stride];
      float share;
      lse = merge_exact_lse(own_lse, rest_lse, share, factors.rest[i]);
      factors.own[i] *= share;
      factors.has_rest[i] = rest_lse != -__builtin_inff();
    }
    tile.lse[row_of(tile, i) * tile.lse_stride] = lse;
  }
  store_out<Type>(tile, scratch.o, factors);
}

inline void clear(const AttentionTile& tile, const TileScratch& scratch) {
  const int64_t queries = (tile.queries + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = 0; i < queries; i += kLanes) {
    store(scratch.largest + i, broadcast(-kHighest));
    store(scratch.total + i, Vf{});
  }
  memset(scratch.o, 0, (size_t)(queries * tile.head_dim) * sizeof(float));
}

template <int W>
inline void load_vectors(const float* from, Vf (&to)[W]) {
  for (int w = 0; w < W; ++w) to[w] = load(from + w * kLanes);
}

template <int W>
inline void store_vectors(float* to, const Vf (&from)[W]) {
  for (int w = 0; w < W; ++w) store(to + w * kLanes, from[w]);
}

// Dot products of a block into scratch.s, and the maxima with those of the blocks before.
template <int W>
inline void panel_scores(const AttentionTile& tile, const TileScratch& scratch, int first,
                         const float* const* keys, int n, Vf (&largest)[W]) {
  block_scores<W>(keys, n, tile.head_dim, scratch.q + (int64_t)first * kLanes * tile.head_dim,
                  scratch.s, largest);
  Vf before[W];
  load_vectors(scratch.largest + first * kLanes, before);
  for (int w = 0; w < W; ++w) largest[w] = max(largest[w], before[w]);
}

// Scores become weights relative to the new maxima; total and, through `decay`, o follow.
template <int W>
inline void panel_weights(const TileScratch& scratch, int first, int n, float unit,
                          const Vf (&largest)[W], Vf (&decay)[W]) {
  Vf before[W], total[W], reference[W], block_total[W];
  load_vectors(scratch.largest + first * kLanes, before);
  load_vectors(scratch.total + first * kLanes, total);
  for (int w = 0; w < W; ++w) {
    reference[w] = SoftmaxReference::of(largest[w], unit);
    decay[w] = SoftmaxReference::decay(SoftmaxReference::of(before[w], unit), reference[w], unit);
  }
  if (__builtin_expect(SoftmaxReference::extreme(reference), 0)) {
    extreme_weights<W>(scratch.s, n, unit, before, largest, decay, block_total);
  } else {
    ordinary_weights<W>(scratch.s, n, unit, reference, block_total);
  }
  exp2_together(decay);
  for (int w = 0; w < W; ++w) total[w] = total[w] * decay[w] + block_total[w];
  store_vectors(scratch.largest + first * kLanes, largest);
  store_vectors(scratch.total + first * kLanes, total);
}

// The first pass over the columns where only the maxima and totals are wanted.
template <class Type>
inline void sum_weights(const AttentionTile& tile, const TileScratch& scratch) {
  const float unit = unit_of(tile.softmax_scale);
  const float* keys[kBlock];
  for (int64_t column = 0; column < tile.count; column += kBlock) {
    const int n = tile.count - column < kBlock ? (int)(tile.count - column) : kBlock;
    gather_rows(Type{}, tile.k, tile.k_stride, tile, column, n, scratch.keys, keys);
    for_each_panel(tile.queries, [&]<int W>(int first) {
      Vf largest[W], decay[W];
      panel_scores<W>(tile, scratch, first, keys, n, largest);
      panel_weights<W>(scratch, first, n, unit, largest, decay);
    });
  }
}

template <class Type>
void attend(const AttentionTile& tile) {
  TileScratch scratch;
  lay_out(scratch, tile.scratch, tile.head_dim);
  load_queries<Type>(tile, scratch.q);
  clear(tile, scratch);
  const float unit = unit_of(tile.softmax_scale);
  const float *keys[kBlock], *values[kBlock];
  for (int64_t column = 0; column < tile.count; column += kBlock) {
    const int n = tile.count - column < kBlock ? (int)(tile.count - column) : kBlock;
    gather_rows(Type{}, tile.k, tile.k_stride, tile, column, n, scratch.keys, keys);
    gather_rows(Type{}, tile.v, tile.v_stride, tile, column, n, scratch.values, values);
    prefetch_rows(Type{}, tile.k, tile.k_stride, tile, column + kBlock);
    prefetch_rows(Type{}, tile.v, tile.v_stride, tile, column + kBlock);
    for_each_panel(tile.queries, [&]<int W>(int first) {
      Vf largest[W], decay[W];
      panel_scores<W>(tile, scratch, first, keys, n, largest);
      panel_weights<W>(scratch, first, n, unit, largest, decay);
      block_times_values<W>(values, n, tile.head_dim, scratch.s, decay,
                            scratch.o + (int64_t)first * kLanes * tile.head_dim);
    });
  }
  finish<Type>(tile, scratch);
}

}  // namespace
}  // namespace chipmunk::cpu
