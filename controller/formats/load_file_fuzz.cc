// Any bytes give a sound load or an error; a load survives its own format.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "controller/formats/load_file.h"
#include "controller/formats/plan_file.h"
#include "proto/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ballast;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (const auto load = ParseLoad(bytes, "input"); load.ok()) {
    std::vector<NamedLoads> named = {{"load", {*load}}};
    for (const LoadPart& part : load->parts) {
      for (const double t : part.load.tokens) BALLAST_CHECK(t >= 0 && std::isfinite(t)) << t;
    }
    const auto set = MakeLoadSet(named);
    BALLAST_CHECK(set.ok()) << set.status().message();
    const auto again = ParseLoad(FormatLoad(load->parts), "again");
    BALLAST_CHECK(again.ok()) << again.status().message();
    BALLAST_CHECK(again->parts.size() == load->parts.size()) << again->parts.size();
    for (size_t i = 0; i < load->parts.size(); ++i) {
      BALLAST_CHECK(again->parts[i].load == load->parts[i].load) << i;
    }
  }
  if (const auto plan = ParsePlan(bytes, "input"); plan.ok()) {
    const auto again = ParsePlan(FormatPlan(*plan), "again");
    BALLAST_CHECK(again.ok()) << again.status().message();
    BALLAST_CHECK(again->placement == plan->placement) << "another placement";
  }
  if (const auto set = ParsePlanSet(bytes, "input"); set.ok() && !set->members[0].name.empty()) {
    const std::string text = FormatPlanSet(*set);
    const auto again = ParsePlanSet(text, "again");
    BALLAST_CHECK(again.ok()) << again.status().message();
    BALLAST_CHECK(FormatPlanSet(*again) == text) << "another set";
  }
  return 0;
}
