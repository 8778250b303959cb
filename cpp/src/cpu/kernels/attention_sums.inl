// Attention of one tile of queries together with the sum of its weights over the queries.

namespace chipmunk::cpu {
namespace {

inline float clamped(double x) {
  return x > kHighest ? kHighest : x < -kHighest ? -kHighest : (float)x;
}

// Which queries count and with what factor. Exact: the weights of the second pass, divided by the
// total. Given a reference: as a logarithm to base 2 that is rounded to float, and what the
// rounding loses becomes the factor. An extreme one becomes the dot product next to it, the shift,
// and the logarithm that is left: what rounding loses could not be a factor. Queries of an infinite
// reference do not count. Returns whether there are shifts other than 0.
inline bool set_references(const AttentionTile& tile, const AttentionColumnSums& request,
                           const TileScratch& scratch) {
  bool has_shift = false;
  // The unit is rounded, too: scores and references must be off by the same factor.
  const double to_natural = natural_per_unit(unit_of(tile.softmax_scale), tile.softmax_scale);
  for (int i = 0; i < kTileQueries; ++i) {
    scratch.reference[i] = __builtin_inff();
    scratch.shift[i] = 0.0f;
    scratch.factor[i] = 0.0f;
  }
  for (int i = 0; i < tile.queries; ++i) {
    if (request.reference_lse == nullptr) {
      const float total = scratch.total[i];
      if (total == 0.0f || total == __builtin_inff()) continue;
      scratch.reference[i] = 0.0f;
      scratch.factor[i] = 1.0f / total;
    } else {
      const float given = request.reference_lse[row_of(tile, i) * request.reference_lse_stride];
      if (is_infinite(given)) continue;
      const double reference = given / to_natural;
      if (__builtin_fabs(reference) >= kExtreme) {
        const double scale = __builtin_fabs((double)tile.softmax_scale);
        if (scale > 0.0) scratch.shift[i] = clamped(given / scale);
        // A product of two floats is exact.
        scratch.reference[i] = clamped((given - scratch.shift[i] * scale) / to_natural);
        scratch.factor[i] = 1.0f;
        has_shift = true;
        continue;
      }
      scratch.reference[i] = (float)reference;
      scratch.factor[i] = __builtin_exp2f((float)((double)scratch.reference[i] - reference));
    }
  }
  return has_shift;
}

template <int W>
inline LaneFactors<W> lane_factors(const TileScratch& scratch, int first) {
  LaneFactors<W> factors;
  for (int w = 0; w < W; ++w) {
    factors.counted[w] = load(scratch.reference + (first + w) * kLanes) != __builtin_inff();
    factors.factor[w] = load(scratch.factor + (first + w) * kLanes);
  }
  return factors;
}

inline void add_lanes(const float* lanes, int n, float* sums) {
  for (int j = 0; j < n; ++j) {
    float sum = 0.0f;
    for (int i = 0; i < kLanes; ++i) sum += lanes[j * kLanes + i];
    sums[j] += sum;
  }
}

// Adds a block's exp(score - reference) to scratch.sums.
template <int W>
inline void panel_exponentials(const TileScratch& scratch, int first, int n, float unit,
                               bool has_shift, const LaneFactors<W>& factors) {
  Vf reference[W], shift[W];
  load_vectors(scratch.reference + first * kLanes, reference);
  if (__builtin_expect(has_shift, 0)) {
    load_vectors(scratch.shift + first * kLanes, shift);
    block_add_exponentials<W>(
        scratch.s, n, [&](Vf s, int w) { return (s - shift[w]) * unit - reference[w]; }, factors,
        scratch.sums);
  } else {
    block_add_exponentials<W>(
        scratch.s, n, [&](Vf s, int w) { return s * unit - reference[w]; }, factors, scratch.sums);
  }
}

// Two passes where the reference is the exact one: the first finds maxima and totals, the second
// has them at hand, so that its weights serve both results.
template <class Type>
void attend_and_sum(const AttentionTile& tile, const AttentionColumnSums& request) {
  TileScratch scratch;
  lay_out(scratch, tile.scratch, tile.head_dim);
  load_queries<Type>(tile, scratch.q);
  clear(tile, scratch);
  const bool exact = request.reference_lse == nullptr;
  if (exact) sum_weights<Type>(tile, scratch);
  const bool has_shift = set_references(tile, request, scratch);
  const float unit = unit_of(tile.softmax_scale);
  const float *keys[kBlock], *values[kBlock];
  for (int64_t column = 0; column < tile.count; column += kBlock) {
    const int n = tile.count - column < kBlock ? (int)(tile.count - column) : kBlock;
    gather_rows(Type{}, tile.k, tile.k_stride, tile, column, n, scratch.keys, keys);
    gather_rows(Type{}, tile.v, tile.v_stride, tile, column, n, scratch.values, values);
    memset(scratch.sums, 0, sizeof(float) * kBlock * kLanes);
    for_each_panel(tile.queries, [&]<int W>(int first) {
      Vf largest[W], decay[W], reference[W];
      const LaneFactors<W> factors = lane_factors<W>(scratch, first);
      panel_scores<W>(tile, scratch, first, keys, n, largest);
      if (exact) {
        // `largest` is final, so these weights serve both results: no rounded lse in between.
        Vf total[W];
        for (int w = 0; w < W; ++w) reference[w] = SoftmaxReference::of(largest[w], unit);
        if (__builtin_expect(SoftmaxReference::extreme(reference), 0)) {
          extreme_weights<W>(scratch.s, n, unit, largest, largest, decay, total);
        } else {
          ordinary_weights<W>(scratch.s, n, unit, reference, total);
        }
        for (int w = 0; w < W; ++w) decay[w] = broadcast(1.0f);
        block_add_weights<W>(scratch.s, n, factors, scratch.sums);
      } else {
        panel_exponentials<W>(scratch, first, n, unit, has_shift, factors);
        panel_weights<W>(scratch, first, n, unit, largest, decay);
      }
      block_times_values<W>(values, n, tile.head_dim, scratch.s, decay,
                            scratch.o + (int64_t)first * kLanes * tile.head_dim);
    });
    add_lanes(scratch.sums, n, request.sums + column);
  }
  finish<Type>(tile, scratch);
}

}  // namespace
}  // namespace chipmunk::cpu
