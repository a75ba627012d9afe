// Other engines' placement files: what they can say, written and read by their own rules.
//
//   sglang      {"physical_to_logical_map": [[expert of each slot], ...]}, a list for every layer of the model, dense
//               ones too: --init-expert-location of SGLang. Read, too: the same as torch.save writes it (.pt), and the
//               map in force of a recorder's dump in the modes per_pass and per_token, without executing anything
//   trtllm      YAML with num_slots, layer_updates_per_iter and initial_global_assignments {layer: [expert of each
//               slot]}: moe_config.load_balancer of TensorRT-LLM
//   vllm-ascend {"moe_layer_count", "layer_list": [{"layer_id", "device_count", "device_list": [{"device_id",
//               "device_expert": [...]}]}]}, MoE layers alone: expert_map_path of vLLM-Ascend
//   eplb        {"phy2log", "log2phy", "logcnt"}: the three arrays that DeepSeek's rebalance_experts returns
//
// In all of them slots are grouped by GPU, every layer and every GPU has as many, and an expert's tokens are split
// equally over its slots.
#ifndef BALLAST_CONTROLLER_FORMATS_ENGINE_FILE_H_
#define BALLAST_CONTROLLER_FORMATS_ENGINE_FILE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/formats/load_file.h"
#include "controller/formats/plan_file.h"

namespace ballast {

enum class EngineFormat { kSglang, kTensorRtLlm, kVllmAscend, kEplb };
// As users write them, in the order of the enum.
const std::vector<std::string>& EngineFormatNames();
// Of one of those names.
EngineFormat EngineFormatOf(std::string_view name);

// What an engine's file says.
struct SlotMap {
  int32_t experts = 0;
  int32_t gpus = 0;
  // Layers of the model, and which of them each list below is, ascending; the others are dense.
  int32_t rows = 0;
  std::vector<int32_t> row_of_layer;
  // [layers][gpus * slots a GPU]
  std::vector<std::vector<int32_t>> expert_of_slot;
  friend bool operator==(const SlotMap&, const SlotMap&) = default;
};

// FailedPrecondition where the plan says what no engine's file can: weights that differ within an expert, or slots that
// differ between layers or workers.
absl::StatusOr<SlotMap> ToSlotMap(const PlanFile& plan);

struct EngineFileOptions {
  // trtllm: what the engine calls row 0 of the load. 3 where the load has MoE layers alone and the model begins with
  // three dense ones.
  int32_t first_layer = 0;
};
// InvalidArgument for an option that `format` has no use for.
absl::Status CheckOptions(EngineFormat format, const EngineFileOptions& options);
// `map` is ToSlotMap's. Where a format lists every row, dense ones get slot mod experts.
std::string FormatEngineFile(EngineFormat format, const SlotMap& map, const EngineFileOptions& options = {});

// Recognised from the content; `format`, where given, must be it. `gpus`: 0 where the file must say it (vllm-ascend
// alone does). Every listed row counts as a MoE layer. InvalidArgument names the file, the place, the value and the
// limit: what the engine itself refuses or could not run.
absl::StatusOr<SlotMap> ParseEngineFile(std::string_view bytes, std::string_view name,
                                        std::optional<EngineFormat> format, int32_t gpus,
                                        const EngineFileOptions& options = {});

struct ImportedPlan {
  PlanFile plan;
  // Experts that the engine keeps twice on one GPU. Ballast's placements do not; one replica stands for them, with
  // their weight.
  struct Merged {
    int32_t layer = 0;
    int32_t expert = 0;
    std::string worker;
    int32_t slots = 0;
  };
  std::vector<Merged> merged;
};
// The plan that `map` is on `topology`, whose workers are its GPUs in order. `load`, where given, is the load the
// engine planned for: its dense rows are left out, its shape must fit, and it becomes the plan's scenarios. Slots are
// numbered through each worker's layers. InvalidArgument where something does not fit; an expert of a layer without a
// slot is named.
absl::StatusOr<ImportedPlan> FromSlotMap(SlotMap map, const Topology& topology, const LoadSet* load);

struct EqualizeLoss {
  std::string scenario;
  double before = 0;
  double after = 0;
};
struct Equalized {
  PlanFile plan;
  // Slots of a layer on each GPU.
  int32_t slots = 0;
  // The placement is another, not only its shares.
  bool planned_anew = false;
  // One for each of the plan's scenarios.
  std::vector<EqualizeLoss> losses;
};
// What engines can be told: equal weights, as many slots in every layer and on every worker. A plan of equal slots
// keeps its placement unless one made for equal split is better under the worst of its scenarios; another is planned
// anew on as many slots a layer as its replicas fill on average, or as the experts need. FailedPrecondition where a new
// placement is needed and the plan has no scenarios.
absl::StatusOr<Equalized> Equalize(const PlanFile& plan);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_ENGINE_FILE_H_
