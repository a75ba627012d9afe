// Scales of blocks in fp8 (e4m3), of the kernels and of their reference.
#ifndef BALLAST_KERNELS_CUDA_FP8_SCALE_H_
#define BALLAST_KERNELS_CUDA_FP8_SCALE_H_

namespace ballast::internal {

// The scale of a block whose largest magnitude is `largest`: that becomes 448, e4m3's largest number.
__host__ __device__ inline float Fp8Scale(float largest) { return largest > 0 ? largest / 448.0f : 1.0f; }

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_FP8_SCALE_H_
