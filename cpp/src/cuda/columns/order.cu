// The schedule of column lists: which multiprocessor takes which, longest first to the least
// loaded.
//
// One CTA sorts the lists by cost, up to kWindow of them at a time (a window), and one warp deals
// them: it keeps the loads sorted, and deals as many lists at once as find their multiprocessor
// before any is loaded twice. In a single window, a list that costs more than a multiprocessor's
// share of all is dealt in two parts. Each multiprocessor takes a window's lists in row-major
// order, so that all of them work on the same heads at a time.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/columns.h"
#include "cuda/host/device_info.h"
#include "cuda/host/launch.h"
#include "params/column_order.h"

namespace chipmunk::cuda {
namespace order {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kBinsPerLane = 8;
constexpr int kMaxBins = 32 * kBinsPerLane - 1;  // multiprocessors; 255 stands for none
constexpr int kMaxParts = 16384;                 // of a window: whole lists, and parts of lists
constexpr int kWindow = kMaxParts - kMaxBins;    // lists
constexpr int32_t kMaxLists = 1 << 29;           // that links can name

// A list costs its tiles of 112 keys and 1.2 more, in fifths.
constexpr int32_t kKeysOfATile = 112, kCostOfATile = 5, kFixedCost = 6;
// Measured, of 192 rows: a part of 128, and one of 64.
constexpr int32_t first_part(int32_t cost) { return cost * 54 / 64; }
constexpr int32_t second_part(int32_t cost) { return cost * 46 / 64; }

__device__ __forceinline__ int32_t cost_of(const ColumnOrderParams& p, int64_t list) {
  const int32_t count = static_cast<const int32_t*>(p.counts.data)[p.counts.offset(list)];
  const auto columns = static_cast<int32_t>(min(static_cast<int64_t>(max(count, 0)), p.capacity));
  return (columns + kKeysOfATile - 1) / kKeysOfATile * kCostOfATile + kFixedCost;
}

// What sorts a window: the greater cost first, and of equal ones the lower link, which counts lists
// from the window's first.
using Key = uint64_t;
__device__ __forceinline__ Key key_of(int32_t cost, int32_t link) {
  return static_cast<Key>(cost) << 32 | (0xffffffffu - static_cast<uint32_t>(link));
}
__device__ __forceinline__ int32_t cost_of(Key key) { return static_cast<int32_t>(key >> 32); }
__device__ __forceinline__ int32_t link_of(Key key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

struct Scratch {
  Key keys[kMaxParts];
  alignas(16) uint8_t owners[3][kMaxParts];  // of a list's parts: the multiprocessor
  int32_t* tails[kMaxBins];                  // where the next link of each multiprocessor goes
  uint32_t loads[kMaxBins];
  unsigned long long sum;
  int32_t least, most, parts;
};

// The sum, and the least and the greatest, of all threads' numbers.
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

// Sorts the first `size` keys, a power of two, the greatest first. Steps of up to 32 stay within 64
// keys, which are always the same warp's.
__device__ void sort(Key* keys, int32_t size) {
  for (int32_t run = 2; run <= size; run *= 2) {
    for (int32_t step = run / 2; step > 0; step /= 2) {
      for (auto i = static_cast<int32_t>(threadIdx.x); i < size / 2; i += kThreads) {
        const int32_t low = (i & ~(step - 1)) * 2 + (i & (step - 1)), high = low + step;
        const Key a = keys[low], b = keys[high];
        if ((a < b) == ((low & run) == 0)) keys[low] = b, keys[high] = a;
      }
      const int32_t next = step > 1 ? step / 2 : run;
      if (step > 32 || next > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

// Sorts a warp's words, the least first; lane l holds numbers kBinsPerLane * l and on.
__device__ __forceinline__ void sort_loads(uint32_t (&x)[kBinsPerLane], int32_t lane) {
#pragma unroll
  for (int run = 2; run <= 32 * kBinsPerLane; run *= 2) {
#pragma unroll
    for (int step = run / 2; step > 0; step /= 2) {
      uint32_t other[kBinsPerLane];
#pragma unroll
      for (int i = 0; i < kBinsPerLane; ++i) {
        other[i] = step < kBinsPerLane ? x[i ^ step % kBinsPerLane]
                                       : __shfl_xor_sync(kWholeWarp, x[i], step / kBinsPerLane);
      }
#pragma unroll
      for (int i = 0; i < kBinsPerLane; ++i) {
        const int number = lane * kBinsPerLane + i;
        const bool low = ((number & step) == 0) == ((number & run) == 0);
        x[i] = low ? min(x[i], other[i]) : max(x[i], other[i]);
      }
    }
  }
}

// Deals the window's sorted parts, by one warp. A load and its multiprocessor share a word.
__device__ void deal(int32_t parts, int32_t bins, int shift, Scratch& scratch) {
  constexpr uint32_t kNone = UINT32_MAX;
  const auto lane = static_cast<int32_t>(threadIdx.x), first = lane * kBinsPerLane;
  uint32_t load[kBinsPerLane], after[kBinsPerLane];
#pragma unroll
  for (int i = 0; i < kBinsPerLane; ++i) {
    load[i] = first + i < bins ? scratch.loads[first + i] << 8 | first + i : kNone;
  }
  for (int32_t at = 0; at < parts;) {
    sort_loads(load, lane);
    // What the loads would be if each took the part of its own rank.
    uint32_t least = kNone;
#pragma unroll
    for (int i = 0; i < kBinsPerLane; ++i) {
      const int32_t part = at + first + i;
      after[i] = part < parts && load[i] != kNone
                     ? load[i] + (static_cast<uint32_t>(cost_of(scratch.keys[part]) >> shift) << 8)
                     : kNone;
      least = min(least, after[i]);
    }
    // Of the lanes before this one.
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t other = __shfl_up_sync(kWholeWarp, least, step);
      if (lane >= step) least = min(least, other);
    }
    least = __shfl_up_sync(kWholeWarp, least, 1);
    if (lane == 0) least = kNone;
    // Each does, up to the first rank whose load is above what an earlier rank would then have.
    int32_t mine = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerLane; ++i) {
      if (mine == i && after[i] != kNone && load[i] <= least) ++mine;
      least = min(least, after[i]);
    }
    const unsigned ends = __ballot_sync(kWholeWarp, mine < kBinsPerLane);
    const int32_t last = ends == 0 ? 31 : __ffs(static_cast<int>(ends)) - 1;
    const int32_t taken = last * kBinsPerLane + __shfl_sync(kWholeWarp, mine, last);
#pragma unroll
    for (int i = 0; i < kBinsPerLane; ++i) {
      if (first + i >= taken) continue;
      const int32_t link = link_of(scratch.keys[at + first + i]);
      scratch.owners[link % 4][list_of(link)] = static_cast<uint8_t>(load[i]);
      load[i] = after[i];
    }
    at += taken;
  }
#pragma unroll
  for (int i = 0; i < kBinsPerLane; ++i) {
    if (load[i] != kNone) scratch.loads[load[i] & 255u] = load[i] >> 8;
  }
}

// Links a multiprocessor's parts of one kind, of the window's lists in their order. By one warp.
__device__ void link(const ColumnOrderParams& p, int32_t begin, int32_t lists, ListPart kind,
                     int32_t bin, Scratch& scratch) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const auto* owners = reinterpret_cast<const uint4*>(scratch.owners[static_cast<int>(kind)]);
  const uint32_t pattern = static_cast<uint32_t>(bin) * 0x01010101u;
  int32_t* const behind = p.order + static_cast<int64_t>(order_row_behind(kind)) * p.lists;
  int32_t* tail = lane == 0 ? scratch.tails[bin] : nullptr;  // lane 0's
  for (int32_t at = 0; at < lists; at += 32 * 16) {
    const uint4 sixteen = owners[at / 16 + lane];
    const uint32_t words[4] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
    uint32_t mine = 0;  // which of this lane's sixteen lists
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      mine |= ((__vcmpeq4(words[word], pattern) & 0x08040201u) * 0x01010101u >> 24) << 4 * word;
    }
    const unsigned lanes = __ballot_sync(kWholeWarp, mine != 0);
    if (lanes == 0) continue;
    const int32_t base = begin + at + 16 * lane;
    const int32_t first = base + __ffs(static_cast<int>(mine)) - 1;
    const unsigned later = lane == 31 ? 0 : lanes >> (lane + 1) << (lane + 1);
    const int32_t next = __shfl_sync(kWholeWarp, first, later != 0 ? __ffs(later) - 1 : lane);
    int32_t list = first;
    for (uint32_t left = mine & (mine - 1); left != 0; left &= left - 1) {
      const int32_t after = base + __ffs(static_cast<int>(left)) - 1;
      behind[list] = order_link(after, kind);
      list = after;
    }
    if (mine != 0 && later != 0) behind[list] = order_link(next, kind);
    const int32_t head = __shfl_sync(kWholeWarp, first, __ffs(static_cast<int>(lanes)) - 1);
    list = __shfl_sync(kWholeWarp, list, 31 - __clz(static_cast<int>(lanes)));
    if (lane == 0) *tail = order_link(head, kind);
    tail = behind + list;
  }
  if (lane == 0) scratch.tails[bin] = tail;
  __syncwarp();
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
  // A multiprocessor's share. Loads have 24 bits, for which costs lose some where columns are many.
  const auto share = static_cast<int64_t>(scratch.sum / bins);
  int shift = 0;
  while ((share + 2 * scratch.most) >> shift >= 1 << 23) ++shift;

  const int32_t windows = (lists + kWindow - 1) / kWindow;
  for (int32_t w = 0; w < windows; ++w) {
    const auto begin = static_cast<int32_t>(static_cast<int64_t>(lists) * w / windows);
    const auto end = static_cast<int32_t>(static_cast<int64_t>(lists) * (w + 1) / windows);
    const int32_t whole = end - begin;
    __syncthreads();
    if (thread == 0) scratch.parts = whole;
    for (int32_t at = thread; at < kMaxParts / 16; at += kThreads) {
      const uint4 none = make_uint4(~0u, ~0u, ~0u, ~0u);
      for (auto& owners : scratch.owners) reinterpret_cast<uint4*>(owners)[at] = none;
    }
    __syncthreads();
    for (int32_t at = thread; at < whole; at += kThreads) {
      const int32_t cost = cost_of(p, begin + at);
      // Fewer than `bins` lists cost more than a share, so keys and owners have room for their
      // parts.
      if (windows == 1 && p.query_group > 128 && cost > share) {
        const int32_t second = atomicAdd(&scratch.parts, 1);
        scratch.keys[at] = key_of(first_part(cost), order_link(at, ListPart::kFirst128Rows));
        scratch.keys[second] = key_of(second_part(cost), order_link(at, ListPart::kFromRow128));
      } else {
        scratch.keys[at] = key_of(cost, order_link(at, ListPart::kWhole));
      }
    }
    __syncthreads();
    const int32_t parts = scratch.parts;
    int32_t size = 1;
    while (size < parts) size *= 2;
    for (int32_t at = parts + thread; at < size; at += kThreads) scratch.keys[at] = 0;
    __syncthreads();
    sort(scratch.keys, size);
    if (thread < 32) deal(parts, bins, shift, scratch);
    __syncthreads();
    for (int32_t bin = thread / 32; bin < bins; bin += kWarps) {
      link(p, begin, whole, ListPart::kWhole, bin, scratch);
      // Parts come behind all whole lists of a multiprocessor, so there are none where windows are
      // several.
      if (parts > whole) {
        link(p, begin, whole, ListPart::kFirst128Rows, bin, scratch);
        link(p, begin, whole, ListPart::kFromRow128, bin, scratch);
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
