// Scales of blocks in fp8 (e4m3), of the kernels and of their reference.
#ifndef BALLAST_KERNELS_CUDA_FP8_SCALE_H_
#define BALLAST_KERNELS_CUDA_FP8_SCALE_H_

namespace ballast::internal {

// The scale of a block whose largest magnitude is `largest`: that becomes 448, e4m3's largest number. At least 1e-30,
// so that its inverse is finite too; smaller blocks lose digits.
__host__ __device__ inline float Fp8Scale(float largest) {
  if (!(largest > 0)) return 1.0f;
  const float scale = largest / 448.0f;
  return scale < 1e-30f ? 1e-30f : scale;
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_FP8_SCALE_H_
