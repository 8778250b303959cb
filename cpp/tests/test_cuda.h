// Tests' tensors on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <stdexcept>

#include "tensor.h"
#include "testing.h"

namespace testing {

inline void check_status(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// A copy of a tensor's bytes on GPU 0, strides and all. It does not outlive the tensor.
class OnGpu {
 public:
  explicit OnGpu(const Tensor& host) : host_(host), view_(host.view()) {
    for (int32_t i = 0; i < view_.rank; ++i) {
      if (view_.shape[i] == 0) return;
      bytes_ += static_cast<size_t>((view_.shape[i] - 1) * view_.strides[i] * element());
    }
    bytes_ += static_cast<size_t>(element());
    check_status(cudaMalloc(&data_, bytes_));
    view_.data = data_;
    view_.device = {chipmunk::DeviceType::kCuda, 0};
    check_status(cudaMemcpy(data_, host.view().data, bytes_, cudaMemcpyHostToDevice));
  }
  ~OnGpu() { cudaFree(data_); }
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }
  // Waits for the device, then brings the bytes back into the tensor it was made from.
  void fetch() const {
    check_status(cudaDeviceSynchronize());
    if (bytes_ > 0) {
      check_status(cudaMemcpy(host_.view().data, data_, bytes_, cudaMemcpyDeviceToHost));
    }
  }

 private:
  int64_t element() const { return chipmunk::size_of(view_.dtype); }

  const Tensor& host_;
  TensorView view_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// 77, by which ctest knows a skipped test, on a machine without a Hopper GPU.
inline int run_on_gpu(Tests& tests) {
  for (const chipmunk::GpuInfo& gpu : chipmunk::build_info().gpus) {
    if (gpu.compute_capability_major == 9 && gpu.compute_capability_minor == 0) return tests.run();
  }
  std::printf("skipped: no GPU of compute capability 9.0\n");
  return 77;
}

}  // namespace testing
