// The input is a config.json, and after a zero byte, if there is one, a generation_config.json.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "proto/base/check.h"
#include "worker/model/checkpoint.h"
#include "worker/model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ballast;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const auto config = ParseModelConfig(input.substr(0, zero),
                                       zero == input.npos ? std::nullopt : std::optional(input.substr(zero + 1)));
  if (!config.ok()) return 0;
  BALLAST_CHECK(config->num_moe_layers() > 0 && !config->Canonical().empty());
  int left = 1000;
  ForEachRequiredTensor(*config, [&](const RequiredTensor& tensor) {
    int64_t elements = 1;
    for (const int64_t dimension : tensor.shape) {
      BALLAST_CHECK(dimension > 0 && !__builtin_mul_overflow(elements, dimension, &elements)) << tensor.name;
    }
    return --left > 0 ? absl::OkStatus() : absl::CancelledError();
  }).IgnoreError();
  return 0;
}
