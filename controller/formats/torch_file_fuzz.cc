// Any bytes as an archive, and any bytes as the pickle in one, give a sound file or an error.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "controller/formats/stored_zip.h"
#include "controller/formats/torch_file.h"
#include "proto/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ballast;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (const auto entries = ReadStoredZip(bytes); entries.ok()) {
    size_t sum = 0;
    for (const auto& [name, entry] : *entries) sum += entry.size();
    BALLAST_CHECK(sum <= size) << sum;
  }
  const std::string storage(64, '\x01');
  const std::map<std::string, std::string_view> archive = {{"a/data.pkl", bytes}, {"a/data/0", storage}};
  if (const auto file = TorchFile::FromEntries(archive); file.ok()) {
    for (int32_t i = 0; i < file->size(); ++i) {
      const TorchFile::Value& value = file->value(i);
      BALLAST_CHECK(!Describe(value).empty()) << i;
      if (value.kind != TorchFile::Value::Kind::kTensor) continue;
      BALLAST_CHECK(value.tensor.size() <= static_cast<int64_t>(storage.size())) << value.tensor.size();
      for (int64_t e = 0; e < value.tensor.size(); ++e) BALLAST_CHECK(value.tensor.at(e) > 0) << e;
    }
  }
  return 0;
}
