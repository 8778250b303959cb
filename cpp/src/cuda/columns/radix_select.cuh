// Finds the k-th greatest key of a row with one CTA: histograms of one digit at a time, from the
// top.
#pragma once

#include <cstdint>

namespace chipmunk::cuda {

inline constexpr int kDigitBits = 11;
inline constexpr int kBins = 1 << kDigitBits;
inline constexpr uint32_t kAllTies = 0xffffffffu;

// The greatest keys of a row: those above `key`, and the first `ties` of those equal to it.
template <class Key>
struct Cut {
  Key key;
  uint32_t ties;
};

template <int kThreads>
struct HistogramScratch {
  uint32_t counts[kBins];
  uint32_t units_low[kBins], units_high[kBins];  // of weights, 64 bits in all; used by mass only
  double warp_sums[kThreads / 32];               // of a scan
  uint32_t warp_counts[kThreads / 32];
  uint32_t bin, count_above, count_in;  // the bin that a search found
  double sum_above;
};

// Bins from the greatest: thread t holds bins kBins - 1 - t * kPerThread downwards.
template <int kThreads>
inline constexpr int kBinsPerThread = kBins / kThreads;

template <int kThreads>
__device__ int bin_of(int i) {
  return kBins - 1 - (static_cast<int>(threadIdx.x) * kBinsPerThread<kThreads> + i);
}

template <class T>
struct Scan {
  T before, total;  // sum over the threads before this one; over all
};

// No thread may still read `warp_totals` from a scan before.
template <int kThreads, class T>
__device__ Scan<T> scan(T value, T (&warp_totals)[kThreads / 32]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T inclusive = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T lower = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += lower;
  }
  T exclusive = __shfl_up_sync(0xffffffffu, inclusive, 1);
  if (lane == 0) exclusive = 0;
  if (lane == 31) warp_totals[warp] = inclusive;
  __syncthreads();
  Scan<T> result{0, 0};
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == warp) result.before = result.total + exclusive;
    result.total += warp_totals[w];
  }
  return result;
}

template <int kThreads, bool kUnits>
__device__ void clear_histogram(HistogramScratch<kThreads>& scratch) {
  __syncthreads();  // earlier reads are done
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    scratch.counts[i] = 0;
    if constexpr (kUnits) scratch.units_low[i] = scratch.units_high[i] = 0;
  }
  __syncthreads();
}

// Finds the bin that holds the `take`-th greatest key of the histogram; take is in [1, keys].
template <int kThreads>
__device__ void find_bin(uint32_t take, HistogramScratch<kThreads>& scratch) {
  constexpr int kPer = kBinsPerThread<kThreads>;
  uint32_t mine = 0;
  for (int i = 0; i < kPer; ++i) mine += scratch.counts[bin_of<kThreads>(i)];
  uint32_t above = scan<kThreads>(mine, scratch.warp_counts).before;
  for (int i = 0; i < kPer; ++i) {
    const uint32_t in = scratch.counts[bin_of<kThreads>(i)];
    if (above < take && take <= above + in) {
      scratch.bin = static_cast<uint32_t>(bin_of<kThreads>(i));
      scratch.count_above = above;
      scratch.count_in = in;
    }
    above += in;
  }
  __syncthreads();
}

// The cut that takes the `take` greatest keys, take > 0 and no more than there are candidates.
// `key_of(j, key)` tells whether column j is a candidate, and its key of kKeyBits bits.
template <int kThreads, int kKeyBits, class Key, class KeyOf>
__device__ Cut<Key> greatest(int64_t n, uint32_t take, const KeyOf& key_of,
                             HistogramScratch<kThreads>& scratch) {
  Key prefix = 0;  // the digits found so far
  int shift = kKeyBits;
  while (shift > 0) {
    const int bits = shift < kDigitBits ? shift : kDigitBits;
    const int above_digit = shift;
    shift -= bits;
    clear_histogram<kThreads, false>(scratch);
#pragma unroll 4
    for (int64_t j = threadIdx.x; j < n; j += kThreads) {
      Key key;
      if (!key_of(j, key)) continue;
      if (above_digit < kKeyBits && key >> above_digit != prefix) continue;
      atomicAdd(&scratch.counts[static_cast<uint32_t>(key >> shift) & ((1u << bits) - 1)], 1u);
    }
    __syncthreads();
    find_bin<kThreads>(take, scratch);
    prefix = prefix << bits | static_cast<Key>(scratch.bin);
    take -= scratch.count_above;
    if (take == scratch.count_in) return {static_cast<Key>(prefix << shift), kAllTies};
  }
  return {prefix, take};
}

}  // namespace chipmunk::cuda
