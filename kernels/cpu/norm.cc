#include "kernels/norm.h"

#include "kernels/cpu/isa.h"

namespace ballast {

void RmsNorm(const float* x, const float* weight, float epsilon, int n, float* out) {
  internal::Kernels().rms_norm(x, weight, epsilon, n, out);
}

}  // namespace ballast
