#include "worker/model/tensor_store.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"
#include "worker/model/mapped_file.h"

namespace ballast {
namespace {

constexpr size_t kMaxIndexBytes = 64 << 20;
// Each is a mapping; the kernel's own limit is 65530 a process.
constexpr size_t kMaxShards = 4096;

bool ByName(const TensorView& a, const TensorView& b) { return a.name < b.name; }

absl::Status CheckShardName(const std::string& tensor, const std::string& shard) {
  const bool plain = !shard.empty() && shard != "." && shard != ".." && shard.size() <= 255 &&
                     shard.find('/') == std::string::npos && shard.find('\0') == std::string::npos;
  if (plain) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(tensor), ": shard ", Quote(shard),
                                                 " is not a plain file name of at most 255 bytes"));
}

}  // namespace

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ParseShardIndex(std::string_view json) {
  BALLAST_ASSIGN_OR_RETURN(const nlohmann::json index, ParseJson(json));
  if (!index.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("wants a JSON object, got ", QuoteJson(index)));
  }
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end()) return absl::InvalidArgumentError("weight_map is missing");
  if (!weight_map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("weight_map is ", QuoteJson(*weight_map), ", want an object"));
  }
  std::vector<std::pair<std::string, std::string>> entries;
  entries.reserve(weight_map->size());
  for (const auto& [tensor, shard] : weight_map->items()) {
    if (!shard.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quote(tensor), ": shard is ", QuoteJson(shard), ", want a file name"));
    }
    BALLAST_RETURN_IF_ERROR(CheckShardName(tensor, shard.get_ref<const std::string&>()));
    entries.emplace_back(tensor, shard.get<std::string>());
  }
  std::sort(entries.begin(), entries.end());
  return entries;
}

absl::StatusOr<TensorStore> TensorStore::Open(const std::string& dir) {
  TensorStore store;
  const std::string single = absl::StrCat(dir, "/model.safetensors");
  const std::string index_path = absl::StrCat(dir, "/model.safetensors.index.json");
  auto file = SafetensorsFile::Open(single);
  if (file.ok()) {
    store.tensors_.assign((*file)->tensors().begin(), (*file)->tensors().end());
    store.files_.push_back(*std::move(file));
    std::sort(store.tensors_.begin(), store.tensors_.end(), ByName);
    return store;
  }
  if (!absl::IsNotFound(file.status())) return file.status();

  const auto index_file = MappedFile::Open(index_path, kMaxIndexBytes);
  if (absl::IsNotFound(index_file.status())) {
    return absl::NotFoundError(absl::StrCat("neither ", single, " nor ", index_path, " is there"));
  }
  if (!index_file.ok()) return index_file.status();
  const auto entries = ParseShardIndex(index_file->text());
  if (!entries.ok()) {
    return absl::Status(entries.status().code(), absl::StrCat(index_path, ": ", entries.status().message()));
  }

  std::map<std::string, size_t> tensors_of_shard;
  for (const auto& [tensor, shard] : *entries) ++tensors_of_shard[shard];
  if (tensors_of_shard.size() > kMaxShards) {
    return absl::InvalidArgumentError(
        absl::StrCat(index_path, ": ", tensors_of_shard.size(), " shards, the limit is ", kMaxShards));
  }
  for (const auto& [shard, count] : tensors_of_shard) {
    BALLAST_ASSIGN_OR_RETURN(auto shard_file, SafetensorsFile::Open(absl::StrCat(dir, "/", shard)));
    for (const TensorView& tensor : shard_file->tensors()) {
      const auto found = std::lower_bound(entries->begin(), entries->end(), tensor.name,
                                          [](const auto& entry, std::string_view name) { return entry.first < name; });
      if (found == entries->end() || found->first != tensor.name) {
        return absl::InvalidArgumentError(absl::StrCat(index_path, ": tensor ", Quote(tensor.name), " is in shard ",
                                                       Quote(shard), " but not in the index"));
      }
      if (found->second != shard) {
        return absl::InvalidArgumentError(absl::StrCat(index_path, ": tensor ", Quote(tensor.name), " is in shard ",
                                                       Quote(shard), ", the index says ", Quote(found->second)));
      }
      store.tensors_.push_back(tensor);
    }
    store.files_.push_back(std::move(shard_file));
  }
  std::sort(store.tensors_.begin(), store.tensors_.end(), ByName);
  // Every tensor found is in the index, once: the index has more only if a shard lacks one.
  for (size_t i = 0; i < entries->size(); ++i) {
    const auto& [tensor, shard] = (*entries)[i];
    if (i == store.tensors_.size() || store.tensors_[i].name != tensor) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": tensor ", Quote(tensor), " is not in shard ", Quote(shard)));
    }
  }
  return store;
}

absl::StatusOr<TensorView> TensorStore::Find(std::string_view name) const {
  const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                      [](const TensorView& tensor, std::string_view n) { return tensor.name < n; });
  if (found == tensors_.end() || found->name != name) {
    return absl::NotFoundError(absl::StrCat("tensor ", Quote(name), " is not in the checkpoint"));
  }
  return *found;
}

}  // namespace ballast
