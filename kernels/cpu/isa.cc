#include "kernels/cpu/isa.h"

#include "kernels/fingerprint.h"

namespace ballast {
namespace internal {

const IsaKernels* KernelsFor(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")
                 ? &kAvx512Kernels
                 : nullptr;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kAvx2Kernels : nullptr;
    case Isa::kBaseline:
      break;
  }
  return &kBaselineKernels;
}

const IsaKernels& Kernels() {
  static const IsaKernels& chosen = []() -> const IsaKernels& {
    for (Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
      if (const IsaKernels* kernels = KernelsFor(isa)) return *kernels;
    }
    return kBaselineKernels;
  }();
  return chosen;
}

}  // namespace internal

// Raise the revision whenever a change gives other bits.
std::string KernelFingerprint() { return internal::Kernels().fused_multiply_add ? "cpu-r1-fma" : "cpu-r1-unfused"; }

}  // namespace ballast
