#include "kernels/elementwise.h"

#include <cmath>

#include "kernels/cpu/isa.h"

namespace ballast {

void RmsNorm(const float* x, const float* weight, float epsilon, int n, float* out) {
  internal::Kernels().rms_norm(x, weight, epsilon, n, out);
}

void SwiGlu(const float* gate, const float* up, int n, float* out) { internal::Kernels().swiglu(gate, up, n, out); }

float LogSumExp(const float* x, int n) {
  const internal::IsaKernels& kernels = internal::Kernels();
  const float top = kernels.maximum(x, n);
  return top + std::log(kernels.sum_exp(x, top, n));
}

float ExpRow(const float* x, float shift, float divisor, int n, float* out) {
  return internal::Kernels().exp_row(x, shift, divisor, n, out);
}

}  // namespace ballast
