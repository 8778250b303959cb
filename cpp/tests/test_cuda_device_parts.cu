// The parts that the Hopper kernels are made of, one by one.
#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <string>
#include <vector>

#include "cuda/device/accumulator.cuh"
#include "cuda/device/gather.cuh"
#include "cuda/device/ring.cuh"
#include "cuda/device/tile_walk.cuh"
#include "cuda/device/tma.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/host/tensor_map.h"
#include "device_buffer.h"

namespace parts {

using namespace chipmunk::cuda;
using chipmunk::View;
using testing::Buffer;
using testing::check_status;
using testing::small;

// Where chunk c (16 bytes) of row r lies in an image of panels of `rows` rows.
int chunk_place(int r, int c, int rows) { return (c / 8 * rows + r) * 8 + (c % 8 ^ r % 8); }

// Gather
// -------------------------------------------------------------------------------------------

template <int kRows, int kRowBytes>
__global__ void gather_tile(const char* from, const int32_t* rows, int32_t live, uint4* image) {
  using Rows = Gather<kRows, kRowBytes>;
  extern __shared__ __align__(1024) char tile[];
  for (int i = threadIdx.x; i < Rows::kTileBytes / 16; i += 128) {
    reinterpret_cast<uint4*>(tile)[i] = make_uint4(7, 7, 7, 7);
  }
  __syncthreads();
  const Rows gather(static_cast<int>(threadIdx.x));
  const int32_t mine = gather.owned_row() < kRows ? rows[gather.owned_row()] : 0;
  gather.load(from + gather.chunk_bytes(), kRowBytes, mine, cute::cast_smem_ptr_to_uint(tile),
              live);
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  for (int i = threadIdx.x; i < Rows::kTileBytes / 16; i += 128) {
    image[i] = reinterpret_cast<uint4*>(tile)[i];
  }
}

template <int kRows, int kRowBytes>
void test_gather(testing::Tests& tests) {
  using Rows = Gather<kRows, kRowBytes>;
  constexpr int kChunks = kRowBytes / 16, kLive = kRows - 20;
  std::vector<uint4> from(200 * kChunks);
  for (unsigned i = 0; i < from.size(); ++i) from[i] = {i, i, i, i};
  std::vector<int32_t> rows(kRows);
  for (int r = 0; r < kRows; ++r) rows[r] = (r * 73 + 5) % 200;
  const Buffer<uint4> source(from);
  const Buffer<int32_t> list(rows);
  const Buffer<uint4> image(Rows::kTileBytes / 16);
  const auto kernel = gather_tile<kRows, kRowBytes>;
  check_status(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Rows::kTileBytes));
  kernel<<<1, 128, Rows::kTileBytes>>>(reinterpret_cast<const char*>(source.data()), list.data(),
                                       kLive, image.data());
  const std::vector<uint4> got = image.fetch();
  bool right = true;
  for (int r = 0; r < kRows; ++r) {
    const bool cleared = r / 16 * 16 >= kLive;  // sixteen at a time
    for (int c = 0; c < kChunks; ++c) {
      const unsigned want = cleared ? 0 : static_cast<unsigned>(rows[r] * kChunks + c);
      right = right && got[chunk_place(r, c, kRows)].x == want;
    }
  }
  tests.check(right, std::to_string(kRows) + " rows of " + std::to_string(kRowBytes) + " bytes");
}

// The copy engine
// ----------------------------------------------------------------------------------

__global__ void copy_panels(const __grid_constant__ CUtensorMap from,
                            const __grid_constant__ CUtensorMap to, uint4* image) {
  extern __shared__ __align__(1024) char tile[];
  __shared__ alignas(8) char barrier[sizeof(TransactionBarrier)];
  auto& full = *reinterpret_cast<TransactionBarrier*>(barrier);
  if (threadIdx.x == 0) {
    full.init(1);
    cutlass::arch::fence_barrier_init();
    load_panels<64, 2, CacheHint::kNormal>(from, full, tile, {1, 2, 30});
  }
  __syncthreads();
  full.wait(0);
  for (int i = threadIdx.x; i < 1024; i += 128) image[i] = reinterpret_cast<uint4*>(tile)[i];
  if (threadIdx.x == 0) {
    store_panels<2>(to, tile, 64 * 128, {0, 1, 5});
    wait_for_stores();
  }
}

void test_panels(testing::Tests& tests) {
  // [batch 2, heads 3, rows 80, 128] of two bytes; rows from 80 on read as 0.
  std::vector<uint16_t> host(2 * 3 * 80 * 128);
  for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<uint16_t>(i * 2654435761u >> 16);
  const Buffer<uint16_t> from(host), to(host.size());
  const Buffer<uint4> image(1024);
  const auto map = [](const void* data, uint32_t rows) {
    const View<const void, 3> view{data, {3 * 80 * 128, 80 * 128, 128}};
    return head_rows_map("test", "x", chipmunk::DType::kBFloat16, view, {2, 3, 80, 128}, rows);
  };
  check_status(
      cudaFuncSetAttribute(copy_panels, cudaFuncAttributeMaxDynamicSharedMemorySize, 16 * 1024));
  copy_panels<<<1, 128, 16 * 1024>>>(map(from.data(), 64), map(to.data(), 64), image.data());
  const std::vector<uint4> got = image.fetch();
  const std::vector<uint16_t> written = to.fetch();
  const auto at = [](int b, int h, int r) { return ((b * 3 + h) * 80 + r) * 128; };
  bool loaded = true, stored = true;
  for (int r = 0; r < 64; ++r) {
    for (int c = 0; c < 16; ++c) {
      uint16_t chunk[8];
      memcpy(chunk, &got[chunk_place(r, c, 64)], 16);
      for (int i = 0; i < 8; ++i) {
        const uint16_t want = r + 30 < 80 ? host[at(1, 2, r + 30) + 8 * c + i] : 0;
        loaded = loaded && chunk[i] == want;
        stored = stored && written[at(0, 1, r + 5) + 8 * c + i] == want;
      }
    }
  }
  tests.check(loaded, "the image is that of a gather, and rows behind the end are 0");
  tests.check(stored, "the same rows come out");
  tests.check(written[at(0, 1, 4) + 127] == 0xffff && written[at(0, 1, 69)] == 0xffff,
              "and no others");
}

// Ring and tile walk
// --------------------------------------------------------------------------------

struct RingShared {
  Ring<3> ring;
  TileWalk<int2, 2> walk;
  int stages[3];
};

// Thread 0 walks over pieces of work {first, count} and sends their numbers through the ring; warps
// 1 and 2 add them up.
__global__ void add_by_ring(int pieces, long long* sums) {
  __shared__ alignas(16) char raw_shared[sizeof(RingShared)];
  auto& shared = *reinterpret_cast<RingShared*>(raw_shared);
  if (threadIdx.x == 0) {
    shared.ring.init(1, 2);
    shared.walk.init(2);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    auto at = RingPosition<3>::of_producer();
    for (int n = 0; n <= pieces; ++n) {
      const int2 work = {n * 10, n < pieces ? n % 4 : -1};
      shared.walk.publish(n, work);
      for (int i = 0; i < work.y; ++i, ++at) {
        shared.ring.acquire(at);
        shared.stages[at.stage] = work.x + i;
        shared.ring.commit(at);
      }
    }
  } else if (threadIdx.x % 32 == 0) {
    RingPosition<3> at;
    long long sum = 0;
    for (int n = 0;; ++n) {
      const int count = shared.walk.wait(n).y;
      if (count < 0) break;
      for (int i = 0; i < count; ++i, ++at) {
        shared.ring.wait(at);
        sum += (i + 1) * shared.stages[at.stage];
        shared.ring.release(at);
      }
      shared.walk.release(n);
    }
    sums[threadIdx.x / 32 - 1] = sum;
  }
}

__global__ void walk_positions(int2* positions) {
  RingPosition<3> at;
  for (int i = 0; i < 7; ++i, ++at) positions[i] = {at.stage, static_cast<int>(at.parity)};
}

void test_ring(testing::Tests& tests) {
  constexpr int kPieces = 1000;
  const Buffer<long long> sums(2);
  add_by_ring<<<1, 96>>>(kPieces, sums.data());
  long long want = 0;
  for (int n = 0; n < kPieces; ++n) {
    for (int i = 0; i < n % 4; ++i) want += (i + 1) * (n * 10 + i);
  }
  for (const long long sum : sums.fetch()) tests.check(sum == want, "all numbers, once, in order");
  const Buffer<int2> positions(7);
  walk_positions<<<1, 1>>>(positions.data());
  const std::vector<int2> got = positions.fetch();
  for (int i = 0; i < 7; ++i) {
    tests.check(got[i].x == i % 3 && got[i].y == i / 3 % 2, "stages in turn, parity by pass");
  }
}

// Products and accumulators
// --------------------------------------------------------------------------

constexpr int kN = 112, kK = 64;  // 64 x 112 x 64

// C = A B^T with A by gather from shared memory, then packed, through shared memory, as the result.
__global__ void multiply(const char* a, const char* b, float* c, char* packed) {
  extern __shared__ __align__(1024) char tiles[];
  using Element = cutlass::bfloat16_t;
  using KMajor = cute::GMMA::Layout_K_SW128_Atom<Element>;
  using LayoutA =
      decltype(cute::tile_to_shape(KMajor{}, cute::Shape<cute::Int<64>, cute::Int<kK>>{}));
  using LayoutB =
      decltype(cute::tile_to_shape(KMajor{}, cute::Shape<cute::Int<kN>, cute::Int<kK>>{}));
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float,
                                 cute::Shape<cute::_64, cute::Int<kN>, cute::_16>>()));
  char *tile_a = tiles, *tile_b = tiles + 64 * 128, *tile_c = tile_b + kN * 128;
  const Gather<64, 2 * kK> gather_a(static_cast<int>(threadIdx.x));
  const Gather<kN, 2 * kK> gather_b(static_cast<int>(threadIdx.x));
  gather_a.load(a + gather_a.chunk_bytes(), 2 * kK, min(gather_a.owned_row(), 63),
                cute::cast_smem_ptr_to_uint(tile_a));
  gather_b.load(b + gather_b.chunk_bytes(), 2 * kK, min(gather_b.owned_row(), kN - 1),
                cute::cast_smem_ptr_to_uint(tile_b));
  asm volatile("cp.async.wait_all;" ::: "memory");
  cutlass::arch::fence_view_async_shared();
  __syncthreads();

  float words[kN / 2];
  const auto operand = [](char* tile, auto layout) {
    return cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<Element*>(tile)), layout);
  };
  const auto mma = Mma{}.get_slice(0);
  const auto in_a = mma.partition_fragment_A(operand(tile_a, LayoutA{}));
  const auto in_b = mma.partition_fragment_B(operand(tile_b, LayoutB{}));
  fence_registers(words);
  start_product<kK / 16, Start::kZero>(Mma{}, in_a, in_b, accumulator_tensor<kN>(words));
  wait_for_products<0>();
  fence_registers(words);
  fence_registers(words);
  start_product<kK / 16, Start::kAccumulate>(Mma{}, in_a, in_b, accumulator_tensor<kN>(words));
  wait_for_products<0>();
  fence_registers(words);

  // By the map of words that accumulator.cuh states.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = 0; i < kN / 2; ++i) {
    const int row = 16 * warp + lane / 4 + (i >> 1 & 1) * 8;
    c[row * kN + 8 * (i >> 2) + 2 * (lane & 3) + (i & 1)] = words[i];
  }
  // And by way of panels of 64 rows in shared memory.
  const SwizzledRows<64> rows(tile_c + warp * 16 * 128);
  for (int i = 0; i < kN / 16; ++i) {
    uint32_t x[4];
    for (int m = 0; m < 4; ++m) {
      x[m] = pack_pair<__nv_bfloat16>(words[8 * i + 2 * m], words[8 * i + 2 * m + 1]);
    }
    rows.write(i, x);
    uint32_t again[4];
    __syncwarp();
    rows.read(i, again);
    for (int m = 0; m < 4; ++m) {
      const float2 pair = unpack_pair<__nv_bfloat16>(again[m]);
      if (pair.x != __bfloat162float(__float2bfloat16_rn(words[8 * i + 2 * m]))) c[0] = NAN;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * 64 * 128 / 16; i += 128) {
    reinterpret_cast<uint4*>(packed)[i] = reinterpret_cast<uint4*>(tile_c)[i];
  }
}

void test_products(testing::Tests& tests) {
  std::vector<__nv_bfloat16> a(64 * kK), b(kN * kK);
  for (unsigned i = 0; i < a.size(); ++i) a[i] = __float2bfloat16(small(i));
  for (unsigned i = 0; i < b.size(); ++i) b[i] = __float2bfloat16(small(i + 12345));
  const Buffer<__nv_bfloat16> in_a(a), in_b(b);
  const Buffer<float> out(64 * kN);
  const Buffer<char> packed(2 * 64 * 128);
  constexpr int kShared = (64 + kN + 2 * 64) * 128;
  check_status(
      cudaFuncSetAttribute(multiply, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  multiply<<<1, 128, kShared>>>(reinterpret_cast<const char*>(in_a.data()),
                                reinterpret_cast<const char*>(in_b.data()), out.data(),
                                packed.data());
  const std::vector<float> c = out.fetch();
  const std::vector<char> image = packed.fetch();
  bool exact = true, staged = true;
  for (int r = 0; r < 64; ++r) {
    for (int n = 0; n < kN; ++n) {
      float want = 0;
      for (int k = 0; k < kK; ++k) want += 2 * small(r * kK + k) * small(n * kK + k + 12345);
      exact = exact && c[r * kN + n] == want;
      __nv_bfloat16 element;
      memcpy(&element, &image[16 * chunk_place(r, n / 8, 64) + n % 8 * 2], 2);
      staged = staged && __bfloat162float(element) == __bfloat162float(__float2bfloat16(want));
    }
  }
  tests.check(exact, "twice A B^T, exactly, at the places of the accumulator's words");
  tests.check(staged, "packed, in panels as a gather makes them");
}

}  // namespace parts

int main() {
  testing::Tests tests;
  tests.add("gather", [&] {
    parts::test_gather<112, 128>(tests);
    parts::test_gather<112, 192>(tests);
    parts::test_gather<128, 256>(tests);
    parts::test_gather<80, 512>(tests);
  });
  tests.add("rows in panels by the copy engine", [&] { parts::test_panels(tests); });
  tests.add("ring and tile walk", [&] { parts::test_ring(tests); });
  tests.add("products and accumulators", [&] { parts::test_products(tests); });
  return testing::run_on_gpu(tests);
}
