#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/files.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"
#include "controller/formats/engine_file.h"
#include "controller/formats/plan_file.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct Options {
  std::string plan;
  std::string format;
  bool equalize = false;
  std::string out;
};

absl::Status Run(const Options& o, CtlContext& context) {
  BALLAST_ASSIGN_OR_RETURN(PlanFile plan, ReadPlan(o.plan));
  if (o.equalize) {
    BALLAST_ASSIGN_OR_RETURN(const Equalized equal, Equalize(plan));
    for (const EqualizeLoss& loss : equal.losses) {
      context.err << absl::StrFormat("equalized: scenario %s: balancedness %s, was %s (loss %.4f)\n", loss.scenario,
                                     Ratio(loss.after), Ratio(loss.before), loss.before - loss.after);
    }
    plan = equal.plan;
  }
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ExportSglang(plan));
  if (o.out.empty()) {
    context.out << bytes;
    return absl::OkStatus();
  }
  return WriteFile(o.out, bytes);
}

}  // namespace

void AddExportVerb(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("export", "Write a plan as another engine's placement file");
  verb->footer(
      "Engines split an expert's tokens equally and want as many slots in every layer and on every GPU. A plan that "
      "says\n"
      "more is refused, or with --equalize brought to that, with what it loses printed.\n"
      "Examples:\n"
      "  ballastctl export --plan plan.json --format sglang --out placement.json\n"
      "  python3 -m sglang.launch_server ... --init-expert-location placement.json");
  verb->add_option("--plan", o->plan, "The plan file")->type_name("FILE")->required();
  verb->add_option("--format", o->format, "sglang")->required()->check(CLI::IsMember({"sglang"}));
  verb->add_flag("--equalize", o->equalize, "Drop what the format cannot say, and print the loss");
  verb->add_option("--out", o->out, "The file to write; stdout by default")->type_name("FILE");
  verb->callback([o, &context] { context.run = [o, &context] { return Run(*o, context); }; });
}

}  // namespace ballast
