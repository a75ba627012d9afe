// What decides the last bits of the kernels' results.
#ifndef BALLAST_KERNELS_FINGERPRINT_H_
#define BALLAST_KERNELS_FINGERPRINT_H_

#include <string>

namespace ballast {

// Names the kernels' revision and the arithmetic chosen at start, e.g. "cpu-r1-fma". Processes with equal fingerprints
// compute equal bits for equal inputs; an `exact` group refuses a mix. AVX-512 and AVX2+FMA give the same bits and
// share a fingerprint; without FMA it is another. The decoder's library has its own (Decoder::fingerprint).
std::string KernelFingerprint();

}  // namespace ballast

#endif  // BALLAST_KERNELS_FINGERPRINT_H_
