#ifndef BALLAST_KERNELS_CPU_SCRATCH_H_
#define BALLAST_KERNELS_CPU_SCRATCH_H_

#include <cstddef>
#include <memory>
#include <new>

namespace ballast::internal {

// Working memory of one thread: keep one `thread_local` a use. Grows to the largest size asked for and stays.
class Scratch {
 public:
  // `count` Ts, 64-byte aligned, contents undefined; valid until the next Get.
  template <typename T>
  T* Get(size_t count) {
    if (count * sizeof(T) > bytes_) {
      bytes_ = count * sizeof(T) * 5 / 4 + 64;
      data_.reset(static_cast<std::byte*>(::operator new (bytes_, std::align_val_t{64})));
    }
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  size_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CPU_SCRATCH_H_
