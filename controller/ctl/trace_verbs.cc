#include <algorithm>
#include <memory>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "ballast/v1/telemetry_service.grpc.pb.h"
#include "controller/ctl/client.h"
#include "controller/ctl/context.h"
#include "controller/ctl/files.h"
#include "controller/ctl/output.h"
#include "controller/ctl/progress.h"
#include "controller/ctl/route_recorder.h"
#include "controller/formats/load_file.h"
#include "controller/formats/trace_file.h"
#include "controller/planner/score.h"
#include "proto/base/clock.h"
#include "proto/base/flags.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct TraceOptions {
  std::vector<std::string> files;
  std::string to;
  std::string out;
  int32_t gpus = 0;
  std::string group;
  std::string worker;
  std::string prompts;
  std::string task;
  int64_t max_tokens = 1 << 20;
  int64_t max_prompt_bytes = 1024;
  double seconds = 60;
  double interval_seconds = 10;
  bool windows = false;
};

absl::Status Convert(const TraceOptions& o, CtlContext& context) {
  const bool load = o.to == "load";
  if (!load && o.files.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--to ", o.to, " takes one --file; ", o.files.size(), " files together are a load (--to load)"));
  }
  std::string bytes;
  if (load) {
    BALLAST_ASSIGN_OR_RETURN(const std::vector<NamedLoads> loads, ReadLoads("load", o.files));
    BALLAST_ASSIGN_OR_RETURN(const std::vector<LoadPart> parts, SumParts(loads[0]));
    bytes = FormatLoad(parts);
  } else {
    BALLAST_ASSIGN_OR_RETURN(const LoadFile file, ReadLoad(o.files[0]));
    absl::StatusOr<std::string> text = o.to == "json" ? FormatTrace(file) : FormatRoutesCsv(file);
    if (!text.ok()) {
      return absl::Status(text.status().code(), absl::StrCat(o.files[0], ": ", text.status().message()));
    }
    bytes = *std::move(text);
    if (o.to == "csv.gz") bytes = Gzip(bytes);
  }
  if (!o.out.empty()) return WriteFile(o.out, bytes);
  context.out << bytes;
  return absl::OkStatus();
}

// Of one part: tokens by row and how level they are by expert, and by GPU with experts in order.
struct PartInfo {
  std::string name;
  double tokens = 0;
  double by_expert = 1;
  double by_gpu = 1;
};

PartInfo Describe(const LoadPart& part, const std::vector<int32_t>& rows, int32_t gpus) {
  PartInfo info{.name = part.name};
  double by_expert = 0;
  double by_gpu = 0;
  int used = 0;
  for (const int32_t row : rows) {
    const auto tokens = part.load.layer(row);
    double sum = 0;
    std::vector<double> loads(std::max(gpus, 1));
    for (size_t e = 0; e < tokens.size(); ++e) {
      sum += tokens[e];
      loads[e * loads.size() / tokens.size()] += tokens[e];
    }
    if (sum == 0) continue;
    info.tokens = std::max(info.tokens, sum);
    by_expert += Balancedness(tokens);
    by_gpu += Balancedness(loads);
    ++used;
  }
  if (used > 0) info.by_expert = by_expert / used, info.by_gpu = by_gpu / used;
  return info;
}

absl::Status Info(const TraceOptions& o, CtlContext& context) {
  nlohmann::ordered_json documents = nlohmann::ordered_json::array();
  for (size_t i = 0; i < o.files.size(); ++i) {
    BALLAST_ASSIGN_OR_RETURN(const LoadFile file, ReadLoad(o.files[i]));
    const LoadMatrix& shape = file.parts[0].load;
    std::vector<int32_t> rows;
    for (int32_t row = 0; row < shape.layers; ++row) {
      const bool any = std::any_of(file.parts.begin(), file.parts.end(), [row](const LoadPart& part) {
        const auto tokens = part.load.layer(row);
        return std::any_of(tokens.begin(), tokens.end(), [](double t) { return t > 0; });
      });
      if (any) rows.push_back(row);
    }
    if (o.gpus > shape.experts) {
      return absl::InvalidArgumentError(
          absl::StrCat("--gpus ", o.gpus, ": ", o.files[i], " has ", shape.experts, " experts a layer"));
    }
    std::set<int64_t> samples;
    size_t tokens = 0;
    for (const std::vector<int64_t>& row : file.routes.samples) {
      samples.insert(row.begin(), row.end());
      tokens = std::max(tokens, row.size());
    }
    nlohmann::ordered_json parts = nlohmann::ordered_json::array();
    Table table(o.gpus > 0 ? std::vector<std::string>{"PART", "CHOICES A LAYER", "BALANCEDNESS BY EXPERT", "BY GPU"}
                           : std::vector<std::string>{"PART", "CHOICES A LAYER", "BALANCEDNESS BY EXPERT"});
    for (const LoadPart& part : file.parts) {
      const PartInfo info = Describe(part, rows, o.gpus);
      nlohmann::ordered_json json = {{"name", info.name}, {"choices", info.tokens}, {"by_expert", info.by_expert}};
      std::vector<std::string> cells = {info.name, absl::StrFormat("%.0f", info.tokens),
                                        absl::StrFormat("%.4f", info.by_expert)};
      if (o.gpus > 0) {
        json["by_gpu"] = info.by_gpu;
        cells.push_back(absl::StrFormat("%.4f", info.by_gpu));
      }
      parts.push_back(std::move(json));
      table.AddRow(std::move(cells));
    }
    nlohmann::ordered_json json = {{"file", o.files[i]},
                                   {"format", file.format},
                                   {"rows", shape.layers},
                                   {"moe_rows", rows.size()},
                                   {"experts", shape.experts}};
    if (file.routes.top_k > 0) {
      json["top_k"] = file.routes.top_k;
      json["tokens"] = tokens;
      json["samples"] = samples.size();
    }
    json["parts"] = std::move(parts);
    if (context.output != OutputFormat::kTable) {
      documents.push_back(std::move(json));
      continue;
    }
    context.out << absl::StrFormat("%s%s: %s, %d rows (%d with load) of %d experts\n", i == 0 ? "" : "\n", o.files[i],
                                   file.format, shape.layers, rows.size(), shape.experts);
    if (file.routes.top_k > 0) {
      context.out << absl::StrFormat("%d tokens of %d samples, %d experts a token\n", tokens, samples.size(),
                                     file.routes.top_k);
    }
    table.Print(context.out);
  }
  if (context.output != OutputFormat::kTable) {
    PrintDocument(context.output, documents.size() == 1 ? documents[0] : documents, context.out);
  }
  return absl::OkStatus();
}

absl::Status RecordPrompts(const TraceOptions& o, CtlContext& context) {
  if (!o.group.empty() || o.prompts.empty()) {
    return absl::InvalidArgumentError("--worker takes --prompts, and no --group: it records what these prompts choose");
  }
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(o.prompts));
  BALLAST_ASSIGN_OR_RETURN(const std::vector<RecordedPrompt> prompts, ParsePrompts(bytes, o.prompts, o.task));
  // As many routes as the tokens of a prompt have.
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  const auto stub = v1::Inference::NewStub(context.security.Connect(o.worker, arguments));
  std::optional<Progress> progress;
  constexpr int64_t kWhole = 10'000;
  progress.emplace(ProgressLineOf(context), Clock::Real(), "recording", kWhole);
  const RecordingOptions options{.max_tokens = o.max_tokens,
                                 .max_prompt_bytes = static_cast<size_t>(o.max_prompt_bytes),
                                 .timeout = absl::Seconds(context.timeout_seconds)};
  const Recording recording = RecordRoutes(*stub, prompts, options, [&](size_t done, int64_t tokens) {
    // Whichever ends it first.
    progress->Set(std::max<int64_t>(kWhole * static_cast<int64_t>(done) / static_cast<int64_t>(prompts.size()),
                                    kWhole * tokens / o.max_tokens));
  });
  progress.reset();
  for (const std::string& line : recording.refused) context.err << o.worker << ": " << line << "\n";
  const auto ended = [&](const std::string& what) {
    return absl::Status(recording.ended.code(), absl::StrCat(o.worker, ": ", recording.ended.message(), what));
  };
  if (recording.tokens == 0) {
    if (!recording.ended.ok()) return ended("");
    return absl::InvalidArgumentError(absl::StrCat(o.prompts, ": the prompts have no tokens, or none was taken"));
  }
  BALLAST_ASSIGN_OR_RETURN(const std::string text, FormatRoutesCsv(recording.file));
  constexpr std::string_view kGzip = ".gz";
  const bool gzip = o.out.size() > kGzip.size() && o.out.compare(o.out.size() - kGzip.size(), kGzip.size(), kGzip) == 0;
  BALLAST_RETURN_IF_ERROR(WriteFile(o.out, gzip ? Gzip(text) : text));
  if (context.output == OutputFormat::kTable) {
    context.out << absl::StrFormat("%d tokens of %d prompts, written to %s\n", recording.tokens, recording.prompts,
                                   o.out);
  } else {
    PrintDocument(context.output, {{"tokens", recording.tokens}, {"prompts", recording.prompts}, {"out", o.out}},
                  context.out);
  }
  if (!recording.ended.ok()) {
    return ended(
        absl::StrCat("; ", o.out, " has what came before: ", recording.prompts, " of ", prompts.size(), " prompts"));
  }
  if (recording.refused.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(o.worker, ": refused ", recording.refused.size(), " prompts, which ", o.out, " does not have"));
}

// Adds what a window has to the parts, which are by phase, and by window where that has a number. False, and nothing is
// added: it has another shape than they have.
bool AddWindow(const v1::WatchLoadResponse& window, int window_number, std::vector<LoadPart>& parts) {
  const bool same_layers =
      std::all_of(window.phases().begin(), window.phases().end(),
                  [&](const v1::PhaseTokens& phase) { return phase.layers_size() == window.num_layers(); });
  const bool same_shape =
      parts.empty() || window.phases().empty() ||
      (parts[0].load.layers == window.num_layers() && parts[0].load.experts == window.num_experts());
  if (!same_layers || !same_shape) return false;
  for (const v1::PhaseTokens& phase : window.phases()) {
    std::string name = phase.phase() == v1::PHASE_PREFILL ? "prefill" : "decode";
    if (window_number > 0) absl::StrAppend(&name, absl::StrFormat("/%05d", window_number));
    auto part = std::find_if(parts.begin(), parts.end(), [&](const LoadPart& p) { return p.name == name; });
    if (part == parts.end()) {
      part = parts.insert(part, {name, LoadMatrix(window.num_layers(), window.num_experts())});
    }
    for (int32_t l = 0; l < phase.layers_size(); ++l) {
      for (int32_t e = 0; e < phase.layers(l).tokens_size() && e < part->load.experts; ++e) {
        part->load.layer(l)[e] += phase.layers(l).tokens(e);
      }
    }
  }
  return true;
}

absl::Status Record(const TraceOptions& o, CtlContext& context) {
  if (!o.worker.empty()) return RecordPrompts(o, context);
  if (o.group.empty()) {
    return absl::InvalidArgumentError(
        "--group (the load of a running group) or --worker (routes of prompts) is needed");
  }
  Client client(context);
  v1::WatchLoadRequest request;
  request.set_group(o.group);
  const auto milliseconds = static_cast<int64_t>(std::min(o.interval_seconds, o.seconds) * 1000);
  request.mutable_interval()->set_seconds(milliseconds / 1000);
  request.mutable_interval()->set_nanos(static_cast<int32_t>(milliseconds % 1000 * 1'000'000));
  grpc::ClientContext call;
  const auto stream = client.telemetry()->WatchLoad(&call, request);
  v1::WatchLoadResponse window;
  std::vector<LoadPart> parts;
  double recorded = 0;
  int windows = 0;
  absl::Status ended;
  std::optional<Progress> progress;
  progress.emplace(ProgressLineOf(context), Clock::Real(), "recording", static_cast<int64_t>(o.seconds * 1000));
  while (recorded < o.seconds && stream->Read(&window)) {
    if (!AddWindow(window, o.windows ? windows + 1 : 0, parts)) {
      ended = absl::AbortedError(absl::StrCat(o.group, ": has another shape than when the recording began"));
      break;
    }
    ++windows;
    recorded += absl::ToDoubleSeconds(absl::Seconds(window.end().seconds() - window.start().seconds()) +
                                      absl::Nanoseconds(window.end().nanos() - window.start().nanos()));
    progress->Set(static_cast<int64_t>(recorded * 1000));
  }
  progress.reset();
  if (recorded >= o.seconds || !ended.ok()) {
    call.TryCancel();
  } else {
    ended = Client::ToStatus(stream->Finish(), context.controller);
    if (ended.ok()) ended = absl::UnavailableError(absl::StrCat(context.controller, ": has ended the recording"));
  }
  if (parts.empty()) {
    if (!ended.ok()) return ended;
    return absl::FailedPreconditionError(
        absl::StrCat(o.group, ": no token in ", recorded, " seconds; nothing written"));
  }
  BALLAST_RETURN_IF_ERROR(WriteFile(o.out, FormatLoad(parts)));
  if (context.output == OutputFormat::kTable) {
    context.out << absl::StrFormat("%.1f seconds in %d windows, %d parts, written to %s\n", recorded, windows,
                                   parts.size(), o.out);
  } else {
    PrintDocument(context.output,
                  {{"seconds", recorded}, {"windows", windows}, {"parts", parts.size()}, {"out", o.out}}, context.out);
  }
  if (ended.ok()) return ended;
  return absl::Status(ended.code(), absl::StrFormat("%s; %s has what came before: %.1f of %.1f seconds",
                                                    std::string(ended.message()), o.out, recorded, o.seconds));
}

}  // namespace

void AddTraceVerbs(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<TraceOptions>();
  CLI::App* trace = app.add_subcommand("trace", "Record, convert and look into routing traces and loads");
  trace->require_subcommand(1);

  CLI::App* record =
      trace->add_subcommand("record", "Record the load of a running group or engine, or the routes of prompts");
  record->footer(
      "With --group: tokens by layer and expert, as the controller counts them: each one once, by phase.\n"
      "With --worker: what every token of the prompts chooses in every layer (csv, gzipped if the name ends in .gz), "
      "a\n"
      "prompt being a sample; a file for each task is what plan --policy task-aware takes.\n"
      "Examples:\n"
      "  ballastctl trace record --group demo --seconds 300 --out load.json\n"
      "  ballastctl trace record --worker 127.0.0.1:7080 --prompts prompts.jsonl --task math --out math.csv.gz");
  record->add_option("--group", o->group, "The group, or the engine")->type_name("NAME");
  record->add_option("--worker", o->worker, "A worker's services, which score --prompts")->type_name("HOST:PORT");
  record->add_option("--prompts", o->prompts, "JSON objects with text and task, one a line")->type_name("FILE");
  record->add_option("--task", o->task, "Of the prompts those of one task; also the label of lines without one");
  record->add_option("--max-tokens", o->max_tokens, "With --worker: stop when so many are recorded")
      ->check(Between(1, 1 << 30))
      ->capture_default_str();
  record->add_option("--max-prompt-bytes", o->max_prompt_bytes, "With --worker: the most of a prompt's text")
      ->check(Between(1, 1 << 20))
      ->capture_default_str();
  record->add_option("--seconds", o->seconds, "How long")->check(Between(0.1, 1e6))->capture_default_str();
  record->add_option("--interval", o->interval_seconds, "Seconds between two looks")
      ->check(Between(0.1, 3600.0))
      ->capture_default_str();
  record->add_flag("--windows", o->windows, "Keep each interval apart, as a part PHASE/NUMBER");
  record->add_option("--out", o->out, "The file to write")->type_name("FILE")->required();
  record->callback([o, &context] { context.run = [o, &context] { return Record(*o, context); }; });

  CLI::App* convert = trace->add_subcommand("convert", "Write a trace in another form, or what it adds up to");
  convert->footer(
      "Reads every load file that plan reads, SGLang's per_token dumps among them.\n"
      "Examples:\n"
      "  ballastctl trace convert --file dump.pt --to csv.gz --out routes.csv.gz\n"
      "  ballastctl trace convert --file rank0.pt --file rank1.pt --to load --out load.json");
  convert->add_option("--file", o->files, "What to read; several are one load")->type_name("FILE")->required();
  convert
      ->add_option("--to", o->to,
                   "csv, csv.gz or json (ballast.trace/v1): each token's experts; load (ballast.load/v1): their sums")
      ->required()
      ->check(CLI::IsMember({"csv", "csv.gz", "json", "load"}));
  convert->add_option("--out", o->out, "The file to write; stdout by default")->type_name("FILE");
  convert->callback([o, &context] { context.run = [o, &context] { return Convert(*o, context); }; });

  CLI::App* info = trace->add_subcommand("info", "Shape, tokens, tasks and balancedness of traces and loads");
  info->footer(
      "Balancedness is mean over max, averaged over the layers with load: by expert, and with --gpus by GPU where\n"
      "experts lie in order and none has a second replica.\n"
      "Example:\n"
      "  ballastctl trace info --file routes.csv.gz --gpus 8");
  info->add_option("--file", o->files, "What to look into")->type_name("FILE")->required();
  info->add_option("--gpus", o->gpus, "GPUs to lay the experts on")->type_name("N")->check(CLI::Range(1, 1 << 16));
  info->callback([o, &context] { context.run = [o, &context] { return Info(*o, context); }; });
}

}  // namespace ballast
