// What the tests of the kernels' parts share.
#pragma once

#include <cstdint>
#include <vector>

#include "test_cuda.h"

namespace testing {

// Memory of the device that the host writes and reads.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t size) : size_(size) {
    check_status(cudaMalloc(&data_, size * sizeof(T)));
    check_status(cudaMemset(data_, 0xff, size * sizeof(T)));
  }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) {
    check_status(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return data_; }
  std::vector<T> fetch() const {
    check_status(cudaGetLastError());
    check_status(cudaDeviceSynchronize());
    std::vector<T> host(size_);
    check_status(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

// A whole number from -8 to 7, as good as random.
inline float small(unsigned i) {
  return static_cast<float>(static_cast<int>(i * 2654435761u >> 28) - 8);
}

}  // namespace testing
