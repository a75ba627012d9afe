// Any bytes give a sound placement or an error; a placement survives every engine's format.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "controller/formats/engine_file.h"
#include "proto/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ballast;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto map = ParseEngineFile(bytes, "input", std::nullopt, 2);
  if (!map.ok()) return 0;
  for (const std::string& name : EngineFormatNames()) {
    const EngineFormat format = EngineFormatOf(name);
    const auto again = ParseEngineFile(FormatEngineFile(format, *map), "again", format, 2);
    BALLAST_CHECK(again.ok()) << name << ": " << again.status().message();
    BALLAST_CHECK(again->experts == map->experts && again->gpus == map->gpus) << name;
    for (size_t l = 0; l < map->row_of_layer.size(); ++l) {
      const bool every_row = format == EngineFormat::kSglang || format == EngineFormat::kEplb;
      BALLAST_CHECK(again->expert_of_slot[every_row ? map->row_of_layer[l] : l] == map->expert_of_slot[l]) << name;
    }
  }
  const auto plan = FromSlotMap(
      *map, UniformTopology(2, 1, static_cast<int32_t>(map->expert_of_slot.size() * map->expert_of_slot[0].size())),
      nullptr);
  BALLAST_CHECK(plan.ok()) << plan.status().message();
  return 0;
}
