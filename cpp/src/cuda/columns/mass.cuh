// How many of a row's greatest scores hold a given fraction of the row's mass, with one CTA.
#pragma once

#include <cstdint>

#include "cuda/columns/radix_select.cuh"
#include "cuda/columns/score_keys.cuh"

namespace chipmunk::cuda {

// Counts, and units of weight, of the keys that start with `prefix` (all bits above `above_digit`),
// by the digit of bits [shift, above_digit). `key_of` as in `greatest`.
template <int kThreads, class Score, class KeyOf>
__device__ void weigh_digit(int64_t n, uint32_t prefix, int above_digit, int shift,
                            const KeyOf& key_of, HistogramScratch<kThreads>& scratch) {
  clear_histogram<kThreads, true>(scratch);
  const uint32_t mask = (1u << (above_digit - shift)) - 1;
#pragma unroll 4
  for (int64_t j = threadIdx.x; j < n; j += kThreads) {
    uint32_t key;
    if (!key_of(j, key)) continue;
    if (above_digit < ScoreFormat<Score>::kBits && key >> above_digit != prefix) continue;
    const uint32_t bin = key >> shift & mask;
    atomicAdd(&scratch.counts[bin], 1u);
    if (has_weight<Score>(key)) {
      // Two halves and a carry: shared memory adds 32 bits natively, 64 bits by a loop.
      const uint32_t units = weight_units<Score>(key);
      const uint32_t old = atomicAdd(&scratch.units_low[bin], units);
      if (old + units < old) atomicAdd(&scratch.units_high[bin], 1u);
    }
  }
  __syncthreads();
}

// The sums of weights of this thread's bins, from the greatest.
template <int kThreads, class Score>
struct BinSums {
  double sums[kBinsPerThread<kThreads>];
  double mine = 0.0;

  // The histogram holds the digit at `shift` of the keys that start with `prefix_bits`, shifted
  // into place.
  __device__ BinSums(uint32_t prefix_bits, int shift, const HistogramScratch<kThreads>& scratch) {
    for (int i = 0; i < kBinsPerThread<kThreads>; ++i) {
      const int bin = bin_of<kThreads>(i);
      const uint32_t key = prefix_bits | static_cast<uint32_t>(bin) << shift;
      const uint64_t units =
          static_cast<uint64_t>(scratch.units_high[bin]) << 32 | scratch.units_low[bin];
      sums[i] = weight_sum<Score>(key, scratch.counts[bin], units);
      mine += sums[i];
    }
  }
};

// The sum of all candidates' weights.
template <int kThreads, class Score, class KeyOf>
__device__ double sum_of_weights(int64_t n, const KeyOf& key_of,
                                 HistogramScratch<kThreads>& scratch) {
  constexpr int kShift = ScoreFormat<Score>::kBits - kDigitBits;
  weigh_digit<kThreads, Score>(n, 0, ScoreFormat<Score>::kBits, kShift, key_of, scratch);
  const BinSums<kThreads, Score> bins(0, kShift, scratch);
  return scan<kThreads>(bins.mine, scratch.warp_sums).total;
}

// The least number of candidates, greatest first, whose weights bring `base` up to mass * (base +
// the weights of all candidates).
template <int kThreads, class Score, class KeyOf>
__device__ uint32_t count_by_mass(int64_t n, double base, double mass, const KeyOf& key_of,
                                  HistogramScratch<kThreads>& scratch) {
  constexpr int kPer = kBinsPerThread<kThreads>;
  double goal = 0.0;
  uint32_t prefix = 0, taken = 0;
  int shift = ScoreFormat<Score>::kBits;
  for (;;) {
    const int above_digit = shift;
    const int bits = min(shift, kDigitBits);
    shift -= bits;
    weigh_digit<kThreads, Score>(n, prefix, above_digit, shift, key_of, scratch);
    const BinSums<kThreads, Score> bins(prefix << bits << shift, shift, scratch);
    const Scan<double> sums = scan<kThreads>(bins.mine, scratch.warp_sums);
    if (taken == 0 && above_digit == ScoreFormat<Score>::kBits) {
      goal = mass * (base + sums.total);
      if (!(base < goal)) return 0;
    }
    // The first bin that reaches the goal; where rounding leaves it out of reach, the last with any
    // weight. Reaching beats not reaching, then the greater bin wins, or the lesser.
    uint32_t best = 0;  // 0: none
    double running = base + sums.before;
    double sum_above[kPer];
    for (int i = 0; i < kPer; ++i) {
      const uint32_t bin = static_cast<uint32_t>(bin_of<kThreads>(i));
      sum_above[i] = running;
      running += bins.sums[i];
      if (running >= goal && bins.sums[i] > 0) best = max(best, kBins + 1 + bin);
      if (bins.sums[i] > 0) best = max(best, kBins - bin);
    }
    if (threadIdx.x == 0) scratch.bin = 0;
    __syncthreads();
    atomicMax(&scratch.bin, __reduce_max_sync(0xffffffffu, best));
    __syncthreads();
    const uint32_t winner = scratch.bin;
    const uint32_t bin = winner > kBins ? winner - kBins - 1 : kBins - winner;
    uint32_t mine = 0;
    for (int i = 0; i < kPer; ++i) mine += scratch.counts[bin_of<kThreads>(i)];
    uint32_t above = scan<kThreads>(mine, scratch.warp_counts).before;
    for (int i = 0; i < kPer; ++i) {
      const uint32_t in = scratch.counts[bin_of<kThreads>(i)];
      if (static_cast<uint32_t>(bin_of<kThreads>(i)) == bin) {
        scratch.count_above = above;
        scratch.count_in = in;
        scratch.sum_above = sum_above[i];
      }
      above += in;
    }
    __syncthreads();
    prefix = prefix << bits | bin;
    taken += scratch.count_above;
    base = scratch.sum_above;
    if (shift == 0) break;
  }
  // What is left are equal weights: the least t with base + t * weight >= goal, else all of them.
  const double weight = weight_sum<Score>(prefix, 1, weight_units<Score>(prefix));
  uint32_t low = 1, high = scratch.count_in;
  while (low < high) {
    const uint32_t t = low + (high - low) / 2;
    if (__dadd_rn(base, __dmul_rn(t, weight)) >= goal) {
      high = t;
    } else {
      low = t + 1;
    }
  }
  return taken + low;
}

}  // namespace chipmunk::cuda
