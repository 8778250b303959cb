// Rows of global memory, picked by index, into 128-byte-swizzled shared memory by cp.async.
#pragma once

#include <cstdint>

namespace chipmunk::cuda {

// 128 threads move tiles of kRows rows of kRowBytes bytes, in panels of 128 bytes. Eight threads
// share a row, 16 bytes of each panel each; a pass of the 16 such octets takes 16 rows. The image
// is what wgmma reads as a K-major operand, and, transposed, as an MN-major one; `load_panels`
// (tma.cuh) makes the same of rows that lie one after another.
template <int kRows, int kRowBytes>
class Gather {
 public:
  static constexpr int kPanels = (kRowBytes + 127) / 128;
  static constexpr int kPanelBytes = kRows * 128;
  static constexpr int kTileBytes = kPanels * kPanelBytes;
  static_assert(kRows % 16 == 0 && kRows <= 128 && kRowBytes % 16 == 0);

  __device__ explicit Gather(int thread)
      : chunk_(thread % 8),
        owned_row_(thread % 8 * 16 + thread / 8),
        offset_(static_cast<uint32_t>(thread / 8 * 128 + ((chunk_ ^ (thread / 8 & 7)) << 4))) {}

  // The row of a tile whose index this thread has to bring; kRows or more: none.
  __device__ int owned_row() const { return owned_row_; }
  __device__ int chunk_bytes() const { return chunk_ * 16; }

  // The first kFirst rows of a tile. Of these, sixteen at a time, rows from `rows` on are cleared
  // instead of loaded. `base` is row 0 plus chunk_bytes(); `index` the row that belongs to
  // owned_row(); `tile` the address of the tile in shared memory.
  template <int kFirst = kRows>
  __device__ void load(const char* base, int32_t row_bytes, int32_t index, uint32_t tile,
                       int32_t rows = kFirst) const {
    static_assert(kFirst % 16 == 0 && kFirst <= kRows);
    const uint32_t to = tile + offset_;
#pragma unroll
    for (int pass = 0; pass < kFirst / 16; ++pass) {
      const int32_t row = __shfl_sync(0xffffffffu, index, pass, 8);
      const char* from = base + static_cast<int64_t>(row) * row_bytes;
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        if (panel * 128 + 128 > kRowBytes && panel * 128 + chunk_ * 16 >= kRowBytes) continue;
        copy(to + static_cast<uint32_t>(pass * 2048 + panel * kPanelBytes), from + panel * 128,
             pass * 16 < rows ? 16 : 0);
      }
    }
  }

 private:
  // The first `bytes` of 16 bytes, and zeros.
  static __device__ void copy(uint32_t to, const char* from, int bytes) {
    // The hint fetches what the next panel's copy asks for a moment later.
    if constexpr (kPanels > 1) {
      asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                   "r"(bytes)
                   : "memory");
    } else {
      asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                   "r"(bytes)
                   : "memory");
    }
  }

  int chunk_, owned_row_;
  uint32_t offset_;
};

}  // namespace chipmunk::cuda
