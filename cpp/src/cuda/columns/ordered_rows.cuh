// Walks a row of columns with one CTA so that the order of the columns is kept: each warp owns one
// contiguous stretch of the row.
#pragma once

#include <cstdint>

namespace chipmunk::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

template <int kThreads>
struct OrderedRowScratch {
  static constexpr int kWarps = kThreads / 32;
  uint32_t warp_counts[kWarps];
};

// Columns [begin, end) of this warp, in multiples of 32 but for the row's end.
template <int kThreads>
struct WarpStretch {
  int64_t begin, end;

  __device__ explicit WarpStretch(int64_t n) {
    constexpr int kWarps = kThreads / 32;
    const int64_t length = (n + 32 * kWarps - 1) / (32 * kWarps) * 32;
    begin = min(n, length * (threadIdx.x / 32));
    end = min(n, begin + length);
  }
};

// How many columns before this warp's stretch satisfy `keep`, and in the whole row. `keep(j)` is
// called once for every column.
struct OrderedCounts {
  uint32_t before, total;
};

template <int kThreads, class Keep>
__device__ OrderedCounts count_ordered(int64_t n, const Keep& keep,
                                       OrderedRowScratch<kThreads>& scratch) {
  const WarpStretch<kThreads> stretch(n);
  uint32_t mine = 0;
#pragma unroll 4
  for (int64_t j = stretch.begin + threadIdx.x % 32; j < stretch.end; j += 32) mine += keep(j);
  mine = __reduce_add_sync(kWholeWarp, mine);
  __syncthreads();  // earlier reads of the scratch are done
  if (threadIdx.x % 32 == 0) scratch.warp_counts[threadIdx.x / 32] = mine;
  __syncthreads();
  OrderedCounts counts{0, 0};
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == static_cast<int>(threadIdx.x / 32)) counts.before = counts.total;
    counts.total += scratch.warp_counts[w];
  }
  return counts;
}

// Writes the ascending columns that satisfy `keep` to list[i * stride], at most `capacity` of them,
// and returns how many there are in all. `keep(j)` is called twice for every column.
template <int kThreads, class Keep>
__device__ uint32_t write_ordered(int64_t n, int64_t capacity, const Keep& keep, int32_t* list,
                                  int64_t stride, OrderedRowScratch<kThreads>& scratch) {
  const OrderedCounts counts = count_ordered(n, keep, scratch);
  const WarpStretch<kThreads> stretch(n);
  const uint32_t lane = threadIdx.x % 32;
  int64_t at = counts.before;
  for (int64_t first = stretch.begin; first < stretch.end && at < capacity; first += 32) {
    const int64_t j = first + lane;
    const bool kept = j < stretch.end && keep(j);
    const uint32_t votes = __ballot_sync(kWholeWarp, kept);
    const int64_t position = at + __popc(votes & ((1u << lane) - 1));
    if (kept && position < capacity) list[position * stride] = static_cast<int32_t>(j);
    at += __popc(votes);
  }
  return counts.total;
}

// The column that is the `rank`-th (from 1) to satisfy `keep`; n - 1 where fewer do.
template <int kThreads, class Keep>
__device__ int64_t find_ordered(int64_t n, uint32_t rank, const Keep& keep,
                                OrderedRowScratch<kThreads>& scratch, int64_t& found) {
  const OrderedCounts counts = count_ordered(n, keep, scratch);
  if (threadIdx.x == 0) found = n - 1;
  __syncthreads();
  const WarpStretch<kThreads> stretch(n);
  const uint32_t lane = threadIdx.x % 32;
  uint32_t seen = counts.before;
  for (int64_t first = stretch.begin; first < stretch.end && seen < rank; first += 32) {
    const int64_t j = first + lane;
    const bool kept = j < stretch.end && keep(j);
    const uint32_t votes = __ballot_sync(kWholeWarp, kept);
    if (kept && seen + __popc(votes & ((1u << lane) - 1)) + 1 == rank) found = j;
    seen += __popc(votes);
  }
  __syncthreads();
  return found;
}

}  // namespace chipmunk::cuda
