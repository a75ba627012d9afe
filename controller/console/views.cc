#include "controller/console/views.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "controller/ctl/output.h"
#include "controller/ctl/plan_text.h"

namespace ballast {
namespace {

using json = nlohmann::ordered_json;

constexpr size_t kHottest = 10;

double Round3(double value) { return std::round(value * 1000) / 1000; }

// The view's workers: those of the placement in its order, then the others.
std::vector<const v1::Worker*> Ordered(const GroupView& view) {
  std::map<std::string, const v1::Worker*> by_name;
  for (const v1::Worker& worker : view.workers) by_name[worker.name()] = &worker;
  std::vector<const v1::Worker*> out;
  for (const std::string& name : view.placement->workers()) {
    const auto found = by_name.find(name);
    out.push_back(found == by_name.end() ? nullptr : found->second);
    if (found != by_name.end()) by_name.erase(found);
  }
  for (const auto& [name, worker] : by_name) out.push_back(worker);
  return out;
}

// [layer][worker] over the layer's mean; 0 where a layer has no load.
std::vector<double> OverMean(const std::vector<std::vector<double>>& tokens) {
  std::vector<double> out;
  for (const std::vector<double>& layer : tokens) {
    double total = 0;
    for (const double t : layer) total += t;
    for (const double t : layer) out.push_back(total == 0 ? 0 : t * static_cast<double>(layer.size()) / total);
  }
  return out;
}

const v1::LayerLoad* FindLayer(const v1::GetLoadResponse& load, int32_t layer) {
  for (const v1::LayerLoad& l : load.layers()) {
    if (l.layer() == layer) return &l;
  }
  return nullptr;
}

// Calls f(replica, its tokens under the load's tokens and the placement's shares) for each replica whose layer has
// load.
template <typename F>
void ForEachReplica(const v1::Placement& placement, const v1::GetLoadResponse& load, F f) {
  std::vector<const v1::LayerLoad*> layers(static_cast<size_t>(std::max(placement.num_layers(), 0)), nullptr);
  for (const v1::LayerLoad& layer : load.layers()) {
    if (layer.layer() >= 0 && layer.layer() < placement.num_layers()) layers[layer.layer()] = &layer;
  }
  // Sorted by layer and expert: the replicas of one expert stand together.
  for (int i = 0; i < placement.replicas_size();) {
    int end = i;
    double weights = 0;
    const v1::Replica& first = placement.replicas(i);
    while (end < placement.replicas_size() && placement.replicas(end).layer() == first.layer() &&
           placement.replicas(end).expert() == first.expert()) {
      weights += placement.replicas(end++).weight();
    }
    const v1::LayerLoad* layer =
        first.layer() >= 0 && first.layer() < placement.num_layers() ? layers[first.layer()] : nullptr;
    const double tokens = layer == nullptr || first.expert() < 0 || first.expert() >= layer->tokens_size()
                              ? 0
                              : layer->tokens(first.expert());
    for (; i < end; ++i) {
      f(placement.replicas(i), weights == 0 ? 0 : tokens * placement.replicas(i).weight() / weights);
    }
  }
}

// [layer][worker] of `placement`, with workers in the order of `names`; none where a worker is not among them.
std::optional<std::vector<std::vector<double>>> WorkerTokens(const v1::Placement& placement,
                                                             const v1::GetLoadResponse& load,
                                                             const std::vector<std::string>& names) {
  std::map<std::string, size_t> index;
  for (size_t i = 0; i < names.size(); ++i) index[names[i]] = i;
  std::vector<size_t> columns;
  for (const std::string& worker : placement.workers()) {
    const auto found = index.find(worker);
    if (found == index.end()) return std::nullopt;
    columns.push_back(found->second);
  }
  std::vector<std::vector<double>> tokens(placement.num_layers(), std::vector<double>(names.size(), 0));
  ForEachReplica(placement, load, [&](const v1::Replica& replica, double t) {
    tokens[replica.layer()][columns[replica.worker()]] += t;
  });
  return tokens;
}

json MoveJson(const v1::Move& move) {
  return {{"layer", move.layer()},   {"expert", move.expert()},
          {"source", move.source()}, {"destination", move.destination()},
          {"slot", move.slot()},     {"bytes", move.bytes()}};
}

bool RollsOut(v1::PlanState state) {
  return state == v1::PLAN_STATE_PREPARING || state == v1::PLAN_STATE_PREPARED || state == v1::PLAN_STATE_COMMITTING;
}

}  // namespace

std::string PackRatios(const std::vector<double>& ratios) {
  std::string bytes;
  bytes.reserve(ratios.size() * 2);
  for (const double ratio : ratios) {
    const auto thousandths = static_cast<uint32_t>(std::lround(std::clamp(ratio, 0.0, 65.535) * 1000));
    bytes.push_back(static_cast<char>(thousandths & 0xff));
    bytes.push_back(static_cast<char>(thousandths >> 8));
  }
  return absl::Base64Escape(bytes);
}

json OverviewJson(const GroupView& view) {
  const v1::Placement& placement = *view.placement;
  json out = {{"at_ms", absl::ToUnixMillis(view.at)},
              {"group", ToJson(view.group)},
              {"layers", placement.num_layers()},
              {"experts", placement.num_experts()},
              {"workers", json::array()},
              {"balancedness", json::array()},
              {"hottest", json::array()}};
  const std::vector<const v1::Worker*> workers = Ordered(view);
  for (size_t i = 0; i < workers.size(); ++i) {
    if (workers[i] == nullptr) {
      out["workers"].push_back({{"name", placement.workers(static_cast<int>(i))}, {"state", "GONE"}});
      continue;
    }
    const v1::Worker& w = *workers[i];
    std::string state = v1::WorkerState_Name(w.state());
    if (state.starts_with("WORKER_STATE_")) state = state.substr(13);
    out["workers"].push_back({{"name", w.name()},
                              {"node", w.node()},
                              {"state", state},
                              {"rank", w.rank()},
                              {"load_ratio", Round3(w.load_ratio())},
                              {"slots", w.slots()},
                              {"slots_used", w.slots_used()},
                              {"kv_cache_used_ratio", Round3(w.kv_cache_used_ratio())},
                              {"requests_running", w.requests_running()},
                              {"requests_waiting", w.requests_waiting()}});
  }

  std::vector<std::vector<double>> tokens(std::max(placement.num_layers(), 0),
                                          std::vector<double>(placement.workers_size(), 0));
  std::vector<double> balancedness(tokens.size(), 0);
  struct Hot {
    double ratio;
    double tokens;
    int32_t layer;
    int32_t expert;
  };
  std::vector<Hot> hot;
  for (const v1::LayerLoad& layer : view.load.layers()) {
    if (layer.layer() < 0 || layer.layer() >= placement.num_layers()) continue;
    balancedness[layer.layer()] = layer.balancedness();
    for (int w = 0; w < std::min(layer.worker_tokens_size(), placement.workers_size()); ++w) {
      tokens[layer.layer()][w] = layer.worker_tokens(w);
    }
    double total = 0;
    for (const double t : layer.tokens()) total += t;
    if (total == 0) continue;
    for (int e = 0; e < layer.tokens_size(); ++e) {
      hot.push_back({layer.tokens(e) * layer.tokens_size() / total, layer.tokens(e), layer.layer(), e});
    }
  }
  for (const double b : balancedness) out["balancedness"].push_back(Round3(b));
  out["load"] = PackRatios(OverMean(tokens));

  const size_t shown = std::min(kHottest, hot.size());
  std::partial_sort(hot.begin(), hot.begin() + static_cast<std::ptrdiff_t>(shown), hot.end(),
                    [](const Hot& a, const Hot& b) {
                      return std::tuple(-a.ratio, a.layer, a.expert) < std::tuple(-b.ratio, b.layer, b.expert);
                    });
  for (size_t i = 0; i < shown; ++i) {
    json names = json::array();
    for (const v1::Replica& replica : placement.replicas()) {
      if (replica.layer() == hot[i].layer && replica.expert() == hot[i].expert &&
          replica.worker() < placement.workers_size()) {
        names.push_back(placement.workers(replica.worker()));
      }
    }
    out["hottest"].push_back({{"layer", hot[i].layer},
                              {"expert", hot[i].expert},
                              {"tokens", std::round(hot[i].tokens)},
                              {"ratio", Round3(hot[i].ratio)},
                              {"replicas", names.size()},
                              {"workers", names}});
  }
  return out;
}

absl::StatusOr<json> LayerJson(const GroupView& view, int32_t layer) {
  const v1::Placement& placement = *view.placement;
  if (layer < 0 || layer >= placement.num_layers()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer: ", layer, " is not below ", placement.num_layers(), ", the layers of the placement"));
  }
  json out = {{"layer", layer},          {"balancedness", 0},       {"tokens", json::array()},
              {"expert", json::array()}, {"worker", json::array()}, {"load", json::array()}};
  double total = 0;
  if (const v1::LayerLoad* load = FindLayer(view.load, layer); load != nullptr) {
    out["balancedness"] = Round3(load->balancedness());
    for (const double t : load->tokens()) {
      out["tokens"].push_back(std::round(t));
      total += t;
    }
  }
  const double mean = total / std::max(placement.workers_size(), 1);
  ForEachReplica(placement, view.load, [&](const v1::Replica& replica, double tokens) {
    if (replica.layer() != layer) return;
    out["expert"].push_back(replica.expert());
    out["worker"].push_back(replica.worker());
    out["load"].push_back(mean == 0 ? 0 : Round3(tokens / mean));
  });
  return out;
}

json PlanJson(const v1::GetPlanResponse& plan, const GroupView& view) {
  json out = {{"plan", ToJson(plan.plan())},      {"layers", json::array()}, {"wave_moves", json::array()},
              {"moves_total", plan.moves_size()}, {"moves", json::array()},  {"explanation", json::array()}};
  for (const v1::LayerEffect& layer : plan.layers()) out["layers"].push_back(ToJson(layer));
  int begin = 0;
  int end = plan.moves_size();
  for (int wave = 0, at = 0; wave < plan.wave_moves_size(); at += plan.wave_moves(wave), ++wave) {
    out["wave_moves"].push_back(plan.wave_moves(wave));
    if (wave == plan.plan().waves_done() && RollsOut(plan.plan().state())) {
      begin = at;
      end = at + plan.wave_moves(wave);
    }
  }
  for (int i = begin; i < std::min({end, begin + kMovesShown, plan.moves_size()}); ++i) {
    out["moves"].push_back(MoveJson(plan.moves(i)));
  }

  const std::vector<v1::ReplicaReason> reasons(plan.reasons().begin(), plan.reasons().end());
  const std::string words = absl::StrCat(EffectText(plan.plan()), TrafficText(plan.plan().effect()),
                                         ReasonsText(reasons, plan.moves_size()), HomesText(plan.placement()));
  for (const absl::string_view line : absl::StrSplit(words, '\n', absl::SkipWhitespace())) {
    out["explanation"].push_back(std::string(absl::StripAsciiWhitespace(line)));
  }

  if (!plan.has_placement() || view.load.layers().empty() ||
      plan.placement().num_layers() != view.placement->num_layers()) {
    return out;
  }
  const std::vector<std::string> names(view.placement->workers().begin(), view.placement->workers().end());
  if (const auto tokens = WorkerTokens(plan.placement(), view.load, names); tokens.has_value()) {
    out["after"] = PackRatios(OverMean(*tokens));
  }
  return out;
}

json EnginesJson(const std::vector<v1::EngineStatus>& engines, absl::Time at) {
  const auto millis = [](const google::protobuf::Timestamp& t) { return t.seconds() * 1000 + t.nanos() / 1'000'000; };
  json out = {{"at_ms", absl::ToUnixMillis(at)}, {"engines", json::array()}};
  for (const v1::EngineStatus& status : engines) {
    const v1::Engine& engine = status.engine();
    std::set<std::string> nodes;
    for (const v1::EngineWorker& worker : engine.workers()) nodes.insert(worker.node());
    out["engines"].push_back({{"name", engine.name()},
                              {"model", engine.model()},
                              {"layers", engine.num_layers()},
                              {"experts", engine.num_experts()},
                              {"gpus", engine.workers_size()},
                              {"nodes", nodes.size()},
                              {"slots_per_layer", engine.slots_per_layer()},
                              {"policy", status.policy()},
                              {"reason", status.reason()},
                              {"epoch", status.epoch()},
                              {"planned_ms", millis(status.planned())},
                              {"last_report_ms", millis(status.last_report())},
                              {"predicted_balancedness", Round3(status.predicted_balancedness())},
                              {"balancedness", Round3(status.balancedness())},
                              {"window_tokens", status.window_tokens()}});
  }
  return out;
}

void History::Add(absl::Time at, const v1::Group& group) {
  if (!samples_.empty() && at < samples_.back().at + kStep) return;
  samples_.push_back({at, group.balancedness(), group.epoch(), group.window_tokens()});
  if (samples_.size() > kSamples) samples_.pop_front();
}

json History::ToJson(absl::Time after) const {
  json out = {{"at_ms", json::array()},
              {"balancedness", json::array()},
              {"epoch", json::array()},
              {"window_tokens", json::array()}};
  for (const Sample& sample : samples_) {
    if (sample.at <= after) continue;
    out["at_ms"].push_back(absl::ToUnixMillis(sample.at));
    out["balancedness"].push_back(Round3(sample.balancedness));
    out["epoch"].push_back(sample.epoch);
    out["window_tokens"].push_back(sample.window_tokens);
  }
  return out;
}

}  // namespace ballast
