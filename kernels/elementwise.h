#ifndef BALLAST_KERNELS_ELEMENTWISE_H_
#define BALLAST_KERNELS_ELEMENTWISE_H_

namespace ballast {

// out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i] for one row of n floats (Zhang, Sennrich, "Root mean square
// layer normalization", 2019); out may be x. A row's bits depend on the row alone. Roofline: 4n flops on 4n (x, weight,
// out) bytes in cache, bound by loads; 20 to 40 ns at n = 256.
void RmsNorm(const float* x, const float* weight, float epsilon, int n, float* out);

// out[i] = silu(gate[i]) * up[i], silu(x) = x / (1 + exp(-x)); out may be one of the inputs. An element's bits depend
// on its inputs alone. Roofline: 12n bytes in cache, about 30 flops an element; bound by arithmetic, 1 ns for 16
// elements.
void SwiGlu(const float* gate, const float* up, int n, float* out);

// ln of the sum of exp(x[i]), n at least 1: the largest plus the logarithm of a sum in 16 lanes and a tree.
// Roofline: 4n bytes in cache, about 20 flops an element; bound by arithmetic.
float LogSumExp(const float* x, int n);

// out[i] = exp((x[i] - shift) / divisor), 0 where that is NaN; their sum, in 16 lanes and a tree. out may be x.
// REQUIRES: divisor above 0. Roofline: 8n bytes in cache, about 20 flops and a division an element; bound by
// arithmetic.
float ExpRow(const float* x, float shift, float divisor, int n, float* out);

}  // namespace ballast

#endif  // BALLAST_KERNELS_ELEMENTWISE_H_
