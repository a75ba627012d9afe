// The input is a .safetensors file, and a model.safetensors.index.json.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "proto/base/check.h"
#include "worker/model/safetensors.h"
#include "worker/model/tensor_store.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ballast;
  const auto entries = ParseSafetensors(std::as_bytes(std::span(data, size)));
  if (entries.ok()) {
    for (size_t i = 0; i < entries->size(); ++i) {
      const SafetensorsEntry& entry = (*entries)[i];
      const size_t end = i + 1 < entries->size() ? (*entries)[i + 1].begin : size;
      BALLAST_CHECK(entry.begin >= 8 && entry.begin <= entry.end && entry.end == end) << entry.name;
      size_t bytes = DTypeSize(entry.dtype);
      for (const int64_t dimension : entry.shape) bytes *= static_cast<size_t>(dimension);
      BALLAST_CHECK(bytes == entry.end - entry.begin) << entry.name;
    }
  }
  const auto shards = ParseShardIndex(std::string_view(reinterpret_cast<const char*>(data), size));
  if (shards.ok()) {
    for (const auto& [tensor, shard] : *shards) BALLAST_CHECK(shard.find('/') == std::string::npos) << shard;
  }
  return 0;
}
