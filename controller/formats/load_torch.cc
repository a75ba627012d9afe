// SGLang's expert distribution recorder in its own files (torch.save). Keys beyond those read are passed over.
//
//   mode stat, stat_approx   {logical_count: [steps][layers][experts], rank, average_utilization_rate_over_window}
//   mode per_pass            {records: [{global_physical_count: [layers][slots], ...}],
//                             last_physical_to_logical_map: [layers][slots]}
//   mode per_token           the same with topk_ids_of_layer [layers][tokens][k]: slots, -1 where there is none; and
//                            extend_seq_lens: the tokens of each request of a prefill pass
//
// Records are physical: the map says which expert a slot holds. Each rank writes its own.
#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/formats/load_readers.h"
#include "controller/formats/torch_file.h"
#include "controller/planner/bursts.h"
#include "proto/base/status_macros.h"

namespace ballast::internal {
namespace {

using Kind = TorchFile::Value::Kind;

class RecorderReader {
 public:
  RecorderReader(const TorchFile& file, const std::string& name, int64_t bytes)
      : torch_(file), name_(name), elements_left_(bytes) {}

  absl::StatusOr<LoadFile> Read() {
    const TorchFile::Value& root = torch_.root();
    if (torch_.Find(root, "logical_count") != nullptr) return ReadStat(root);
    if (torch_.Find(root, "records") != nullptr) return ReadRecords(root);
    if (torch_.Find(root, "physical_to_logical_map") != nullptr) {
      return Bad(name_, "physical_to_logical_map: this is a placement, not a load; a load has logical_count");
    }
    return Bad(name_, absl::StrCat("not a load that is known: holds ", Describe(root),
                                   ", want a dict with logical_count or records"));
  }

 private:
  // The tensor `key` of `dict`, of as many dimensions. A file that refers to one again and again is refused, as it
  // would keep the reader busy for long.
  absl::StatusOr<const TorchTensor*> Tensor(const TorchFile::Value& dict, const char* key, const std::string& where,
                                            size_t least_dimensions, size_t most_dimensions) {
    const TorchFile::Value* value = torch_.Find(dict, key);
    if (value == nullptr) return Bad(name_, absl::StrCat(where, key, ": is missing"));
    const std::string want = least_dimensions == most_dimensions
                                 ? absl::StrCat(most_dimensions)
                                 : absl::StrCat(least_dimensions, " or ", most_dimensions);
    if (value->kind != Kind::kTensor || value->tensor.shape.size() < least_dimensions ||
        value->tensor.shape.size() > most_dimensions) {
      return Bad(name_,
                 absl::StrCat(where, key, ": is ", Describe(*value), ", want a tensor of ", want, " dimensions"));
    }
    elements_left_ -= value->tensor.size();
    if (elements_left_ < 0) return Bad(name_, absl::StrCat(where, key, ": the file's tensors are used over and over"));
    return &value->tensor;
  }

  absl::Status CheckShape(int64_t layers, int64_t experts, const std::string& where) const {
    if (layers < 1 || layers > kMaxLoadRows) {
      return Bad(name_, absl::StrCat(where, ": ", layers, " layers; must be 1 to ", kMaxLoadRows));
    }
    if (experts < 1 || experts > kMaxLoadExperts) {
      return Bad(name_, absl::StrCat(where, ": ", experts, " experts; must be 1 to ", kMaxLoadExperts));
    }
    if (layers * experts > kMaxLoadCells) {
      return Bad(name_, absl::StrCat(where, ": ", layers, " layers of ", experts, " experts; the limit is ",
                                     kMaxLoadCells, " counts"));
    }
    return absl::OkStatus();
  }

  absl::Status Add(double tokens, const std::string& where, int64_t layer, int64_t expert, double& sum) const {
    if (!(tokens >= 0) || tokens > kMostTokens) {
      return Bad(name_, absl::StrCat(where, " row ", layer, " expert ", expert, ": ", tokens, "; must be 0 to 1e18"));
    }
    sum += tokens;
    if (sum <= kMostTokens) return absl::OkStatus();
    return Bad(name_,
               absl::StrCat(where, " row ", layer, " expert ", expert, ": sums to ", sum, "; the limit is 1e18"));
  }

  absl::StatusOr<LoadFile> ReadStat(const TorchFile::Value& root) {
    BALLAST_ASSIGN_OR_RETURN(const TorchTensor* counts, Tensor(root, "logical_count", "", 2, 3));
    const size_t dimensions = counts->shape.size();
    const int64_t layers = counts->shape[dimensions - 2];
    const int64_t experts = counts->shape[dimensions - 1];
    BALLAST_RETURN_IF_ERROR(CheckShape(layers, experts, "logical_count"));
    if (counts->size() == 0) return Bad(name_, "logical_count: has no steps");
    LoadFile file;
    file.format = "sglang";
    file.parts.push_back({name_, LoadMatrix(static_cast<int32_t>(layers), static_cast<int32_t>(experts))});
    std::vector<double>& sums = file.parts[0].load.tokens;
    const int64_t cells = layers * experts;
    LoadMatrix step = file.parts[0].load;
    BurstMeter meter;
    for (int64_t i = 0; i < counts->size(); ++i) {
      const int64_t cell = i % cells;
      const double tokens = counts->at(i);
      step.tokens[cell] = tokens;
      // The common case without building what an error would say.
      if (tokens >= 0 && sums[cell] + tokens <= kMostTokens) {
        sums[cell] += tokens;
      } else {
        BALLAST_RETURN_IF_ERROR(
            Add(tokens, absl::StrCat("logical_count step ", i / cells), cell / experts, cell % experts, sums[cell]));
      }
      if (cell == cells - 1) meter.Add(step);
    }
    if (counts->size() >= cells * kLeastStepsForBursts) file.parts[0].burstiness = meter.Burstiness();
    return file;
  }

  // Which expert each slot holds, [layers][slots].
  absl::Status ReadMap(const TorchFile::Value& root) {
    const char* key = "last_physical_to_logical_map";
    BALLAST_ASSIGN_OR_RETURN(const TorchTensor* map, Tensor(root, key, "", 2, 2));
    layers_ = map->shape[0];
    slots_ = map->shape[1];
    BALLAST_RETURN_IF_ERROR(CheckShape(layers_, slots_, key));
    expert_of_slot_.resize(layers_ * slots_);
    for (int64_t i = 0; i < map->size(); ++i) {
      const double expert = map->at(i);
      if (expert != std::floor(expert) || expert < 0 || expert >= static_cast<double>(slots_)) {
        return Bad(name_, absl::StrCat(key, " row ", i / slots_, " slot ", i % slots_, ": ", expert,
                                       "; must be an expert, 0 to ", slots_ - 1));
      }
      expert_of_slot_[i] = static_cast<int32_t>(expert);
      experts_ = std::max(experts_, expert_of_slot_[i] + 1);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<LoadFile> ReadRecords(const TorchFile::Value& root) {
    BALLAST_RETURN_IF_ERROR(ReadMap(root));
    const TorchFile::Value& records = *torch_.Find(root, "records");
    if (records.kind != Kind::kList || records.items.empty()) {
      return Bad(name_, absl::StrCat("records: is ", Describe(records), ", want a list of at least one"));
    }
    LoadFile file;
    file.format = "sglang-records";
    file.parts.push_back({name_, LoadMatrix(static_cast<int32_t>(layers_), experts_)});
    const bool tokens = torch_.Find(torch_.value(records.items[0]), "topk_ids_of_layer") != nullptr;
    if (tokens) {
      file.routes.experts.resize(layers_);
      file.routes.samples.resize(layers_);
      file.routes.tokens.resize(layers_);
      BALLAST_RETURN_IF_ERROR(FindTopK(records, file.routes.top_k));
    }
    for (size_t r = 0; r < records.items.size(); ++r) {
      const TorchFile::Value& record = torch_.value(records.items[r]);
      const std::string where = absl::StrCat("records[", r, "].");
      if (tokens) {
        BALLAST_RETURN_IF_ERROR(AddTokens(record, where, file.routes));
      } else {
        BALLAST_RETURN_IF_ERROR(AddCounts(record, where, file.parts[0].load));
      }
    }
    if (tokens) BALLAST_RETURN_IF_ERROR(CountRoutes(name_, experts_, file));
    return file;
  }

  absl::Status AddCounts(const TorchFile::Value& record, const std::string& where, LoadMatrix& load) {
    const char* key = "global_physical_count";
    BALLAST_ASSIGN_OR_RETURN(const TorchTensor* counts, Tensor(record, key, where, 2, 2));
    BALLAST_RETURN_IF_ERROR(WantShape(*counts, {layers_, slots_}, where + key));
    for (int64_t i = 0; i < counts->size(); ++i) {
      const int64_t layer = i / slots_;
      const int32_t expert = expert_of_slot_[i];
      BALLAST_RETURN_IF_ERROR(
          Add(counts->at(i), where + key, layer, expert, load.layer(static_cast<int32_t>(layer))[expert]));
    }
    return absl::OkStatus();
  }

  absl::Status WantShape(const TorchTensor& tensor, const std::vector<int64_t>& shape, const std::string& what) const {
    if (tensor.shape == shape) return absl::OkStatus();
    return Bad(name_, absl::StrCat(what, ": is [", absl::StrJoin(tensor.shape, ", "), "], the map has [",
                                   absl::StrJoin(shape, ", "), "]"));
  }

  // The recorder keeps room for as many experts a token as it was built for; a model that uses fewer leaves the last
  // columns at -1.
  absl::Status FindTopK(const TorchFile::Value& records, int32_t& top_k) {
    for (size_t r = 0; r < records.items.size(); ++r) {
      const std::string where = absl::StrCat("records[", r, "].");
      BALLAST_ASSIGN_OR_RETURN(const TorchTensor* ids,
                               Tensor(torch_.value(records.items[r]), "topk_ids_of_layer", where, 3, 3));
      const int64_t columns = ids->shape[2];
      if (columns < 1 || columns > kMaxLoadExperts || ids->shape[0] != layers_) {
        return Bad(name_, absl::StrCat(where, "topk_ids_of_layer: is [", absl::StrJoin(ids->shape, ", "), "], want [",
                                       layers_, " layers, tokens, 1 to ", kMaxLoadExperts, "]"));
      }
      for (int64_t i = 0; i < ids->size(); ++i) {
        if (ids->at(i) != -1) top_k = std::max(top_k, static_cast<int32_t>(i % columns) + 1);
      }
    }
    if (top_k > kMaxRoutedExperts) {
      return Bad(name_, absl::StrCat("records: ", top_k, " experts a token; the limit is ", kMaxRoutedExperts));
    }
    if (top_k > 0) return absl::OkStatus();
    return Bad(name_, "records: no token has an expert");
  }

  // The sample of each token of a pass: the request in a prefill, its own in a decode step.
  std::vector<int64_t> Samples(const TorchFile::Value& record, int64_t tokens) {
    std::vector<int64_t> samples;
    const TorchFile::Value* lengths = torch_.Find(record, "extend_seq_lens");
    if (lengths != nullptr && lengths->kind == Kind::kList) {
      for (const int32_t item : lengths->items) {
        const TorchFile::Value& length = torch_.value(item);
        const int64_t left = tokens - static_cast<int64_t>(samples.size());
        if (length.kind != Kind::kInt || length.integer < 0 || length.integer > left) break;
        samples.insert(samples.end(), length.integer, next_sample_++);
      }
    }
    while (static_cast<int64_t>(samples.size()) < tokens) samples.push_back(next_sample_++);
    return samples;
  }

  absl::Status AddTokens(const TorchFile::Value& record, const std::string& where, RouteTrace& routes) {
    const char* key = "topk_ids_of_layer";
    BALLAST_ASSIGN_OR_RETURN(const TorchTensor* ids, Tensor(record, key, where, 3, 3));
    const int64_t tokens = ids->shape[1];
    const int64_t columns = ids->shape[2];
    const std::vector<int64_t> samples = Samples(record, tokens);
    std::vector<int32_t> chosen;
    for (int64_t row = 0; row < layers_ * tokens; ++row) {
      const int64_t layer = row / tokens;
      const int64_t token = row % tokens;
      const auto at = [&] { return absl::StrCat(where, key, " row ", layer, " token ", token, ": "); };
      chosen.clear();
      int64_t used = 0;
      for (int64_t c = 0; c < columns; ++c) {
        const double slot = ids->at(row * columns + c);
        if (slot == -1) continue;
        if (slot != std::floor(slot) || slot < 0 || slot >= static_cast<double>(slots_)) {
          return Bad(name_, absl::StrCat(at(), slot, "; must be a slot, 0 to ", slots_ - 1, ", or -1"));
        }
        const int32_t expert = expert_of_slot_[layer * slots_ + static_cast<int64_t>(slot)];
        if (std::find(chosen.begin(), chosen.end(), expert) != chosen.end()) {
          return Bad(name_, absl::StrCat(at(), "expert ", expert, " twice for one token"));
        }
        chosen.push_back(expert);
        used = c + 1;
      }
      // Padding, or a dense layer.
      if (chosen.empty()) continue;
      if (used != routes.top_k || static_cast<int64_t>(chosen.size()) != used) {
        return Bad(name_, absl::StrCat(at(), chosen.size(), " experts; other tokens have ", routes.top_k));
      }
      routes.experts[layer].insert(routes.experts[layer].end(), chosen.begin(), chosen.end());
      routes.samples[layer].push_back(samples[token]);
      routes.tokens[layer].push_back(first_token_ + token);
    }
    first_token_ += tokens;
    return absl::OkStatus();
  }

  const TorchFile& torch_;
  const std::string& name_;
  // Elements take at least four bytes and are read at most twice, so no honest file uses more of them than it has
  // bytes.
  int64_t elements_left_;
  int64_t layers_ = 0;
  int64_t slots_ = 0;
  int32_t experts_ = 0;
  std::vector<int32_t> expert_of_slot_;
  int64_t next_sample_ = 0;
  // Tokens are numbered through the file's passes.
  int64_t first_token_ = 0;
};

}  // namespace

absl::StatusOr<LoadFile> ParseTorchLoad(std::string_view bytes, const std::string& name) {
  const absl::StatusOr<TorchFile> file = TorchFile::Parse(bytes);
  if (!file.ok()) return Bad(name, std::string(file.status().message()));
  return RecorderReader(*file, name, static_cast<int64_t>(bytes.size())).Read();
}

}  // namespace ballast::internal
