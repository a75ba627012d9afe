// What the sources compiled for one instruction set share.
#ifndef BALLAST_KERNELS_CPU_ISA_KERNELS_H_
#define BALLAST_KERNELS_CPU_ISA_KERNELS_H_

#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

namespace ballast::internal::BALLAST_ISA {

void PackRows(const float* const* rows, int num_rows, int k, float* packed);
void Matmul(const float* packed, int num_rows, int k, const uint16_t* weights, int outputs, float* out,
            size_t out_stride);
void SwiGluPacked(const float* gate, const float* up, int num_rows, int width, float* packed);
void SwiGlu(const float* gate, const float* up, int n, float* out);
void Softmax(float* x, int n);
float SumExp(const float* x, float shift, int n);
float ExpRow(const float* x, float shift, float divisor, int n, float* out);
void RmsNorm(const float* x, const float* weight, float epsilon, int n, float* out);
void Rotate(float* x, const float* cosine, const float* sine, int half);
void MultiplyAdd(float weight, const float* x, int n, float* out);
float Maximum(const float* x, int n);
void Attend(const AttentionArgs& args, const float* const* queries, const int* limits, int count, float* scores,
            float* const* outs);

}  // namespace ballast::internal::BALLAST_ISA

#endif  // BALLAST_KERNELS_CPU_ISA_KERNELS_H_
