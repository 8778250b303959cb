// Rows that lie one after another, by the copy engine, into and out of panels of 128 bytes.
#pragma once

#include <cstdint>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/device/barriers.cuh"

namespace chipmunk::cuda {

// A thread's place in a tensor [batch, head, row, dim].
struct RowPlace {
  int32_t batch, head, row;
};

constexpr int kPanelElements = 64;  // two bytes each: the widest swizzle

// What L2 is told of the bytes that are read.
enum class CacheHint : uint64_t {
  kEvictFirst = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST),
  kNormal = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL),
};

// Loads kRows rows from `at` on into kPanels panels, in the image of `Gather`; the map's boxes are
// kRows x 64 elements. By one thread. `full` completes when the bytes are there; its count is 1.
template <int kRows, int kPanels, CacheHint kHint>
__device__ __forceinline__ void load_panels(const CUtensorMap& map, TransactionBarrier& full,
                                            char* to, const RowPlace& at) {
  constexpr int kPanelBytes = kRows * 128;
  full.arrive_and_expect_tx(kPanels * kPanelBytes);
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    cute::SM90_TMA_LOAD_4D::copy(&map, reinterpret_cast<uint64_t*>(&full),
                                 static_cast<uint64_t>(kHint), to + panel * kPanelBytes,
                                 panel * kPanelElements, at.row, at.head, at.batch);
  }
}

// Has L2 read what `load_panels` will ask for.
template <int kPanels>
__device__ __forceinline__ void prefetch_panels(const CUtensorMap& map, const RowPlace& at) {
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    cute::SM90_TMA_LOAD_4D::PREFETCH::copy(&map, panel * kPanelElements, at.row, at.head, at.batch);
  }
}

// Stores a box of rows from each of kPanels panels, `panel_bytes` apart, and commits. By one
// thread, behind a tma_store_fence and a barrier among those who wrote. `wait_for_stores` waits
// until the engine has read them.
template <int kPanels>
__device__ __forceinline__ void store_panels(const CUtensorMap& map, const char* from,
                                             int panel_bytes, const RowPlace& at) {
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    cute::SM90_TMA_STORE_4D::copy(&map, from + panel * panel_bytes, panel * kPanelElements, at.row,
                                  at.head, at.batch);
  }
  cute::tma_store_arrive();
}
__device__ __forceinline__ void wait_for_stores() { cute::tma_store_wait<0>(); }

}  // namespace chipmunk::cuda
