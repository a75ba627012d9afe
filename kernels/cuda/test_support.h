// Device memory and error checks for tests and benchmarks.
#ifndef BALLAST_KERNELS_CUDA_TEST_SUPPORT_H_
#define BALLAST_KERNELS_CUDA_TEST_SUPPORT_H_

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/test_data.h"
#include "kernels/cuda/status.h"
#include "proto/base/check.h"

namespace ballast {

inline void CheckCuda(cudaError_t error) {
  const absl::Status status = CudaStatus(error, "a CUDA call");
  BALLAST_CHECK(status.ok()) << status.message();
}

// Owned device memory of `size` elements, not cleared.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) { CheckCuda(cudaMalloc(reinterpret_cast<void**>(&data_), Bytes())); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    CheckCuda(cudaMemcpy(data_, values.data(), sizeof(T) * size_, cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  // Every byte, so that what is not written shows.
  void Fill(int byte) { CheckCuda(cudaMemset(data_, byte, Bytes())); }
  T* data() const { return data_; }
  size_t size() const { return size_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    CheckCuda(cudaMemcpy(values.data(), data_, sizeof(T) * size_, cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t Bytes() const { return sizeof(T) * (size_ > 0 ? size_ : 1); }

  size_t size_;
  T* data_ = nullptr;
};

using internal::FromBf16;

// |got - wanted| / |wanted|, Euclidean; NaN where either has one.
class RelativeError {
 public:
  void Add(double got, double wanted) {
    difference_ += (got - wanted) * (got - wanted);
    norm_ += wanted * wanted;
  }
  double value() const { return norm_ > 0 ? std::sqrt(difference_ / norm_) : difference_; }

 private:
  double difference_ = 0, norm_ = 0;
};

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_TEST_SUPPORT_H_
