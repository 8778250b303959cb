// The schedule of column lists: which multiprocessor takes which, longest first to the least
// loaded.
//
// Lists are dealt window by window, in row-major order, so that all multiprocessors work on the
// same heads at a time. A window is sorted by cost and dealt by one warp, a list a step. In the
// last window a list that costs more than what is left for a multiprocessor is dealt in two parts.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/columns.h"
#include "cuda/host/device_info.h"
#include "cuda/host/launch.h"
#include "params/column_order.h"

namespace chipmunk::cuda {
namespace order {

constexpr int kThreads = 1024;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kBinsPerLane = 5;
constexpr int kMaxBins = 32 * kBinsPerLane;  // multiprocessors: no Hopper card has more than 144
constexpr int kWindow = 1024;                // lists, from so many to twice as many less one
constexpr int kMaxParts = 4096;              // of a window, each a whole list or a part of one
constexpr int32_t kMaxLists = 1 << 29;       // that links can name

// A list costs its tiles of 112 keys and 1.2 more, measured; in fifths.
constexpr int32_t kKeysOfATile = 112, kCostOfATile = 5, kFixedCost = 6;
// A part of 128 rows takes 0.64 of the time of all 192, one of 64 rows 0.6.
constexpr int32_t first_part(int32_t cost) { return cost * 41 / 64; }
constexpr int32_t second_part(int32_t cost) { return cost * 39 / 64; }

__device__ __forceinline__ int32_t cost_of(const ColumnOrderParams& p, int64_t list) {
  const int32_t count = static_cast<const int32_t*>(p.counts.data)[p.counts.offset(list)];
  const auto columns = static_cast<int32_t>(min(static_cast<int64_t>(max(count, 0)), p.capacity));
  return (columns + kKeysOfATile - 1) / kKeysOfATile * kCostOfATile + kFixedCost;
}

// What sorts a window: the greater cost first, and of equal ones the lower number.
using Key = uint64_t;
__device__ __forceinline__ Key key_of(int32_t cost, int32_t number) {
  return static_cast<Key>(cost) << 32 | (0xffffffffu - static_cast<uint32_t>(number));
}
__device__ __forceinline__ int32_t cost_of(Key key) { return static_cast<int32_t>(key >> 32); }
// Of key_of: 4 * list in the window + part, a link of the window's own.
__device__ __forceinline__ int32_t number_of(Key key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

struct Scratch {
  Key keys[kMaxParts];
  alignas(4) uint8_t owners[kMaxParts];  // the multiprocessor that takes a part
  int32_t* tails[kMaxBins];              // where the next link of each multiprocessor goes
  uint32_t loads[kMaxBins];
  unsigned long long sum;
  int32_t least, most, parts;
};

// The sum, and the least and the greatest, of this block's numbers.
__device__ void reduce(int64_t sum, int32_t least, int32_t most, Scratch& scratch) {
  __syncthreads();
  if (threadIdx.x == 0) scratch.sum = 0, scratch.least = INT32_MAX, scratch.most = 0;
  __syncthreads();
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, step);
  least = __reduce_min_sync(kWholeWarp, least);
  most = __reduce_max_sync(kWholeWarp, most);
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&scratch.sum, static_cast<unsigned long long>(sum));
    atomicMin(&scratch.least, least);
    atomicMax(&scratch.most, most);
  }
  __syncthreads();
}

// Sorts the first `size` keys, a power of two, the greatest first.
__device__ void sort(Key* keys, int32_t size) {
  for (int32_t run = 2; run <= size; run *= 2) {
    for (int32_t step = run / 2; step > 0; step /= 2) {
      for (auto i = static_cast<int32_t>(threadIdx.x); i < size / 2; i += kThreads) {
        const int32_t low = i / step * 2 * step + i % step, high = low + step;
        const Key a = keys[low], b = keys[high];
        if ((a < b) == ((low & run) == 0)) keys[low] = b, keys[high] = a;
      }
      __syncthreads();
    }
  }
}

// Deals the window's sorted parts, by one warp. A load and its multiprocessor share a word, so that
// one reduction finds the least loaded, and of equal ones the first.
__device__ void deal(int32_t bins, int shift, Scratch& scratch) {
  const auto lane = static_cast<int32_t>(threadIdx.x);
  uint32_t load[kBinsPerLane];
#pragma unroll
  for (int i = 0; i < kBinsPerLane; ++i) {
    const int32_t bin = lane + 32 * i;
    load[i] = bin < bins ? scratch.loads[bin] << 8 | static_cast<uint32_t>(bin) : UINT32_MAX;
  }
  int32_t cost = cost_of(scratch.keys[0]);
  for (int32_t at = 0; at < scratch.parts; ++at) {
    uint32_t least = load[0];
#pragma unroll
    for (int i = 1; i < kBinsPerLane; ++i) least = min(least, load[i]);
    least = __reduce_min_sync(kWholeWarp, least);
    const auto more = static_cast<uint32_t>(cost >> shift) << 8;
#pragma unroll
    for (int i = 0; i < kBinsPerLane; ++i) load[i] += load[i] == least ? more : 0;
    if (lane == 0) scratch.owners[at] = static_cast<uint8_t>(least);
    cost = cost_of(scratch.keys[min(at + 1, kMaxParts - 1)]);
  }
#pragma unroll
  for (int i = 0; i < kBinsPerLane; ++i) {
    const int32_t bin = lane + 32 * i;
    if (bin < bins) scratch.loads[bin] = load[i] >> 8;
  }
}

// Links this thread's multiprocessor's parts of one kind.
__device__ void link(const ColumnOrderParams& p, int32_t begin, ListPart kind, Scratch& scratch) {
  const auto bin = static_cast<int32_t>(threadIdx.x);
  const uint32_t pattern = static_cast<uint32_t>(bin) * 0x01010101u;
  int32_t* tail = scratch.tails[bin];
  for (int32_t word = 0; word < (scratch.parts + 3) / 4; ++word) {
    uint32_t mine = __vcmpeq4(reinterpret_cast<const uint32_t*>(scratch.owners)[word], pattern);
    while (mine != 0) {
      const int byte = (__ffs(static_cast<int>(mine)) - 1) / 8;
      mine &= ~(0xffu << 8 * byte);
      const int32_t at = 4 * word + byte;
      if (at >= scratch.parts) break;
      const int32_t number = number_of(scratch.keys[at]);
      if (part_of(number) != kind) continue;
      const int32_t list = begin + list_of(number);
      *tail = order_link(list, kind);
      tail = p.order + static_cast<int64_t>(order_row_behind(kind)) * p.lists + list;
    }
  }
  scratch.tails[bin] = tail;
}

}  // namespace order

__global__ void __launch_bounds__(order::kThreads, 1)
    order_lists_sm90(const __grid_constant__ ColumnOrderParams p, int32_t bins) {
  using namespace order;
  extern __shared__ __align__(16) char raw_scratch[];
  auto& scratch = *reinterpret_cast<Scratch*>(raw_scratch);
  const auto thread = static_cast<int32_t>(threadIdx.x), lists = static_cast<int32_t>(p.lists);

  for (int64_t i = thread; i < kOrderRows * p.lists; i += kThreads) p.order[i] = kNoLink;
  if (thread < bins) {
    scratch.loads[thread] = 0;
    scratch.tails[thread] = p.order + thread;
  }
  int64_t sum = 0;
  int32_t least = INT32_MAX, most = 0;
#pragma unroll 4
  for (int32_t list = thread; list < lists; list += kThreads) {
    const int32_t cost = cost_of(p, list);
    sum += cost;
    least = min(least, cost), most = max(most, cost);
  }
  reduce(sum, least, most, scratch);
  // As they come.
  if (scratch.least == scratch.most || lists >= kMaxLists) return;
  // Loads have 24 bits, for which costs lose some where there are very many columns.
  int shift = 0;
  while ((scratch.sum / bins + 2 * scratch.most) >> shift >= 1u << 23) ++shift;

  const int32_t windows = max(1, lists / kWindow);
  for (int32_t w = 0; w < windows; ++w) {
    const auto begin = static_cast<int32_t>(static_cast<int64_t>(lists) * w / windows);
    const auto end = static_cast<int32_t>(static_cast<int64_t>(lists) * (w + 1) / windows);
    // What the window leaves for the least loaded, if all end at one time.
    int32_t room = INT32_MAX;
    if (w == windows - 1 && p.query_group > 128) {
      sum = 0;
      for (int32_t list = begin + thread; list < end; list += kThreads) sum += cost_of(p, list);
      const auto load = thread < bins ? static_cast<int32_t>(scratch.loads[thread] << shift) : 0;
      reduce(sum + load, thread < bins ? load : INT32_MAX, 0, scratch);
      room = max(1, static_cast<int32_t>(scratch.sum / bins) - scratch.least);
    }
    __syncthreads();
    const int32_t whole = end - begin;
    if (thread == 0) scratch.parts = whole;
    __syncthreads();
    for (int32_t at = thread; at < whole; at += kThreads) {
      const int32_t cost = cost_of(p, begin + at);
      // Fewer than `bins` lists are split: together they cost more than there is room for.
      const int32_t second = cost > room ? atomicAdd(&scratch.parts, 1) : kMaxParts;
      if (second < kMaxParts) {
        scratch.keys[at] = key_of(first_part(cost), order_link(at, ListPart::kFirst128Rows));
        scratch.keys[second] = key_of(second_part(cost), order_link(at, ListPart::kFromRow128));
      } else {
        scratch.keys[at] = key_of(cost, order_link(at, ListPart::kWhole));
      }
    }
    __syncthreads();
    if (thread == 0) scratch.parts = min(scratch.parts, kMaxParts);
    __syncthreads();
    int32_t size = 1;
    while (size < scratch.parts) size *= 2;
    for (int32_t at = scratch.parts + thread; at < size; at += kThreads) scratch.keys[at] = 0;
    __syncthreads();
    sort(scratch.keys, size);
    if (thread < 32) deal(bins, shift, scratch);
    __syncthreads();
    if (thread < bins) {
      link(p, begin, ListPart::kWhole, scratch);
      if (scratch.parts > whole) {  // a multiprocessor's tiles have ever fewer rows
        link(p, begin, ListPart::kFirst128Rows, scratch);
        link(p, begin, ListPart::kFromRow128, scratch);
      }
    }
  }
}

void order_lists(const ColumnOrderParams& params, const LaunchSite& site) {
  require_hopper("order_lists", site.device);
  if (params.empty()) return;
  // A row of the order holds a link for each list.
  const auto bins = static_cast<int32_t>(std::min<int64_t>(
      {device_limits(site.device).multiprocessors, order::kMaxBins, params.lists}));
  launch("order_lists", order_lists_sm90,
         {.grid = dim3(1),
          .block = dim3(order::kThreads),
          .shared_bytes = static_cast<int>(sizeof(order::Scratch))},
         site, params, bins);
}

}  // namespace chipmunk::cuda
