#ifndef BALLAST_KERNELS_NORM_H_
#define BALLAST_KERNELS_NORM_H_

namespace ballast {

// out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i] for one row of n floats (Zhang, Sennrich, "Root mean square
// layer normalization", 2019); out may be x. A row's bits depend on the row alone. Roofline: 4n flops on 4n (x, weight,
// out) bytes in cache, bound by loads; 20 to 40 ns at n = 256.
void RmsNorm(const float* x, const float* weight, float epsilon, int n, float* out);

}  // namespace ballast

#endif  // BALLAST_KERNELS_NORM_H_
