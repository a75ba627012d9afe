#ifndef BALLAST_WORKER_MODEL_TENSOR_STORE_H_
#define BALLAST_WORKER_MODEL_TENSOR_STORE_H_

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/safetensors.h"

namespace ballast {

// Parses model.safetensors.index.json: (tensor, shard file), sorted by tensor. Shards are plain file names, so that an
// index cannot reach out of its folder. InvalidArgument names the tensor and the reason.
absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ParseShardIndex(std::string_view json);

// All tensors of a checkpoint's folder, from one file or from shards. Thread-safe: immutable.
class TensorStore {
 public:
  // Maps dir/model.safetensors or else the shards that dir/model.safetensors.index.json names.
  // NotFound: neither is there, or a shard is missing. InvalidArgument: as SafetensorsFile::Open and ParseShardIndex,
  // or index and shards disagree: a tensor is not in the shard that the index says, or is in another one too.
  static absl::StatusOr<TensorStore> Open(const std::string& dir);

  // NotFound names the tensor.
  absl::StatusOr<TensorView> Find(std::string_view name) const;
  // Sorted by name.
  std::span<const TensorView> tensors() const { return tensors_; }

 private:
  TensorStore() = default;

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<TensorView> tensors_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_TENSOR_STORE_H_
