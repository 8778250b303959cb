#include "cuda/host/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <string>

#include "cuda/host/error.h"

namespace chipmunk::cuda {
namespace {

// The driver's function through the runtime: the library does not link to libcuda.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                cudaEnableDefault, &result),
               "cudaGetDriverEntryPointByVersion(cuTensorMapEncodeTiled)");
    if (result != cudaDriverEntryPointSuccess) {
      throw Unsupported(
          "the CUDA driver has no cuTensorMapEncodeTiled; CUDA 12 or later is needed");
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  return function;
}

}  // namespace

CUtensorMap head_rows_map(const char* op, const char* argument, DType dtype,
                          const View<const void, 3>& rows, const HeadRowsShape& shape,
                          uint32_t box_rows) {
  const cuuint64_t sizes[4] = {
      static_cast<cuuint64_t>(shape.dim), static_cast<cuuint64_t>(shape.rows),
      static_cast<cuuint64_t>(shape.heads), static_cast<cuuint64_t>(shape.batch)};
  // The stride of a dimension of size 1 is never used, and may be anything.
  const auto bytes = [](int64_t size, int64_t stride) {
    return static_cast<cuuint64_t>(size == 1 ? 16 : 2 * stride);
  };
  const cuuint64_t strides[3] = {bytes(shape.rows, rows.strides[2]),
                                 bytes(shape.heads, rows.strides[1]),
                                 bytes(shape.batch, rows.strides[0])};
  const cuuint32_t box[4] = {64, box_rows, 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = encoder()(
      &map,
      dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      4, const_cast<void*>(rows.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Unsupported(std::string(op) + ": " + argument +
                      ": the copy engine takes no tensor with these strides (CUresult " +
                      std::to_string(status) + "); pass a contiguous one");
  }
  return map;
}

}  // namespace chipmunk::cuda
