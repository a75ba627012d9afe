#include "controller/telemetry/load_window.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "controller/store/records.pb.h"
#include "proto/base/check.h"
#include "proto/placement/balancedness.h"
#include "proto/placement/resample.h"

namespace ballast {
namespace {

constexpr size_t kMaxTaskLength = 64;
// More than any cluster counts in a report; keeps sums exact in a double.
constexpr int64_t kMaxTokens = int64_t{1} << 48;

absl::Status CheckTokens(std::string_view field, int64_t tokens) {
  if (tokens >= 0 && tokens <= kMaxTokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("load_report.", std::string(field), ": ", tokens, " is not in 0 to ", kMaxTokens));
}

absl::Status CheckBalance(const v1::StepBalance& balance) {
  if (balance.phase() != v1::PHASE_PREFILL && balance.phase() != v1::PHASE_DECODE) {
    return absl::InvalidArgumentError(
        absl::StrCat("load_report.balance.phase: ", static_cast<int>(balance.phase()), " is no phase"));
  }
  constexpr int kBuckets = static_cast<int>(kStepBalancednessBounds.size()) + 1;
  if (balance.buckets_size() != kBuckets) {
    return absl::InvalidArgumentError(
        absl::StrCat("load_report.balance.buckets: ", balance.buckets_size(), " numbers, not ", kBuckets));
  }
  int64_t steps = 0;
  for (const int64_t in_bucket : balance.buckets()) {
    if (absl::Status status = CheckTokens("balance.buckets", in_bucket); !status.ok()) return status;
    steps += in_bucket;
  }
  if (steps != balance.steps()) {
    return absl::InvalidArgumentError(
        absl::StrCat("load_report.balance.steps: ", balance.steps(), " is not the sum of the buckets, ", steps));
  }
  // Not a number compares false.
  if (!(balance.balancedness_sum() >= 0 && balance.balancedness_sum() <= static_cast<double>(steps) * (1 + 1e-9))) {
    return absl::InvalidArgumentError(
        absl::StrCat("load_report.balance.balancedness_sum: ", balance.balancedness_sum(), " is not in 0 to ", steps));
  }
  for (const auto& [field, layers] : {std::pair("layers_with_fixed_shares", balance.layers_with_fixed_shares()),
                                      std::pair("layers_with_previous_shares", balance.layers_with_previous_shares()),
                                      std::pair("layers_with_current_shares", balance.layers_with_current_shares())}) {
    if (absl::Status status = CheckTokens(absl::StrCat("balance.", field), layers); !status.ok()) return status;
  }
  return absl::OkStatus();
}

bool ValidTask(std::string_view task) {
  return task.size() <= kMaxTaskLength && std::all_of(task.begin(), task.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-';
         });
}

}  // namespace

LoadWindow::LoadWindow(std::string group, int32_t layers, int32_t experts, const Options& options,
                       int32_t experts_per_token)
    : group_(std::move(group)),
      layers_(layers),
      experts_(experts),
      options_(options),
      experts_per_token_(experts_per_token) {
  for (const int phase : {v1::PHASE_PREFILL, v1::PHASE_DECODE}) {
    phase_tokens_[phase].resize(static_cast<size_t>(layers) * experts);
  }
  BALLAST_CHECK(options.bucket >= absl::Seconds(1) && options.window >= options.bucket && options.max_tasks >= 1 &&
                options.max_routes >= 1);
}

int64_t LoadWindow::BucketOf(absl::Time at) const {
  const int64_t width = absl::ToInt64Seconds(options_.bucket);
  const int64_t seconds = absl::ToUnixSeconds(at);
  return seconds - (seconds % width + width) % width;
}

std::string LoadWindow::StorePrefix(std::string_view group) { return absl::StrCat("load/", std::string(group), "/"); }

std::string LoadWindow::Key(const CellId& id) const {
  return absl::StrFormat("%s%010d/%d/%s", StorePrefix(group_), id.bucket, id.phase, id.task);
}

std::string LoadWindow::Shown(const std::string& task) const {
  if (tasks_.contains(task) || static_cast<int>(tasks_.size()) < options_.max_tasks) return task;
  return std::string(kPooledTask);
}

LoadWindow::Cell& LoadWindow::CellOf(const CellId& id) {
  auto [it, inserted] = cells_.try_emplace(id);
  if (inserted) {
    it->second.tokens.resize(static_cast<size_t>(layers_) * experts_);
    if (id.task != kPooledTask) ++tasks_[id.task];
    expired_.erase(id);
  }
  return it->second;
}

absl::Status LoadWindow::CheckRoutes(const v1::LoadReport& report) const {
  std::set<std::pair<int, int>> seen;
  for (const v1::RouteSample& sample : report.route_samples()) {
    const auto bad = [](const char* field, int64_t value, const std::string& limit) {
      return absl::InvalidArgumentError(
          absl::StrCat("load_report.route_samples.", field, ": ", value, " is not ", limit));
    };
    if (sample.task() < 0 || sample.task() >= report.task_tokens_size()) {
      return bad("task", sample.task(), absl::StrCat("in 0 to ", report.task_tokens_size() - 1));
    }
    if (sample.phase() != v1::PHASE_PREFILL && sample.phase() != v1::PHASE_DECODE) {
      return bad("phase", sample.phase(), "a phase");
    }
    if (!seen.insert({sample.task(), sample.phase()}).second) {
      return bad("task", sample.task(), "the only one of its phase");
    }
    const v1::TaskTokens& task = report.task_tokens(sample.task());
    const int64_t population = sample.phase() == v1::PHASE_DECODE ? task.decode_tokens() : task.prefill_tokens();
    if (sample.tokens() < 1 || sample.tokens() > population) {
      return bad("tokens", sample.tokens(), absl::StrCat("in 1 to ", population, ", the task's tokens"));
    }
    const size_t width = experts_per_token_ > 0 ? route_width() : sample.experts_size() / sample.tokens();
    if (static_cast<size_t>(sample.experts_size()) != width * sample.tokens()) {
      return bad("experts", sample.experts_size(),
                 absl::StrCat(sample.tokens(), " tokens of ", width, " numbers, experts a token times layers"));
    }
    for (const int32_t e : sample.experts()) {
      if (e < 0 || e >= experts_) return bad("experts", e, absl::StrCat("in 0 to ", experts_ - 1));
    }
    for (int at = 0; at < sample.experts_size() && experts_per_token_ > 0; at += experts_per_token_) {
      const int32_t* const of_layer = sample.experts().data() + at;
      for (int32_t i = 1; i < experts_per_token_; ++i) {
        if (std::find(of_layer, of_layer + i, of_layer[i]) != of_layer + i) {
          return bad("experts", of_layer[i], "distinct within a token and layer");
        }
      }
    }
  }
  return absl::OkStatus();
}

void LoadWindow::AddRoutes(std::span<const int32_t> experts, double each, Cell& cell) {
  cell.routes.insert(cell.routes.end(), experts.begin(), experts.end());
  cell.stands_for.resize(cell.routes.size() / route_width(), each);
  if (static_cast<int>(cell.stands_for.size()) <= options_.max_routes) return;
  const double sum = std::accumulate(cell.stands_for.begin(), cell.stands_for.end(), 0.0);
  std::vector<int32_t> kept;
  for (const int32_t t : Resample(cell.stands_for, options_.max_routes, SpreadOffset(++thinned_))) {
    const auto token = cell.routes.begin() + static_cast<ptrdiff_t>(t * route_width());
    kept.insert(kept.end(), token, token + static_cast<ptrdiff_t>(route_width()));
  }
  cell.routes = std::move(kept);
  cell.stands_for.assign(options_.max_routes, sum / options_.max_routes);
}

absl::Status LoadWindow::Add(const v1::LoadReport& report, absl::Time now) {
  for (const v1::TaskTokens& task : report.task_tokens()) {
    if (!ValidTask(task.task())) {
      return absl::InvalidArgumentError(
          absl::StrCat("load_report.task_tokens.task: not at most 64 characters of [A-Za-z0-9._-]"));
    }
    for (const auto& [field, tokens] : {std::pair("task_tokens.prefill_tokens", task.prefill_tokens()),
                                        std::pair("task_tokens.decode_tokens", task.decode_tokens())}) {
      if (absl::Status status = CheckTokens(field, tokens); !status.ok()) return status;
    }
  }
  for (const v1::LoadCount& count : report.counts()) {
    const auto check = [](std::string_view field, int64_t value, int64_t limit) {
      return value >= 0 && value < limit
                 ? absl::OkStatus()
                 : absl::InvalidArgumentError(absl::StrCat("load_report.counts.", std::string(field), ": ", value,
                                                           " is not in 0 to ", limit - 1));
    };
    if (absl::Status s = check("layer", count.layer(), layers_); !s.ok()) return s;
    if (absl::Status s = check("expert", count.expert(), experts_); !s.ok()) return s;
    if (absl::Status s = check("task", count.task(), report.task_tokens_size()); !s.ok()) return s;
    if (absl::Status s = CheckTokens("counts.tokens", count.tokens()); !s.ok()) return s;
    if (count.phase() != v1::PHASE_PREFILL && count.phase() != v1::PHASE_DECODE) {
      return absl::InvalidArgumentError(
          absl::StrCat("load_report.counts.phase: ", static_cast<int>(count.phase()), " is no phase"));
    }
  }
  for (const v1::StepBalance& balance : report.balance()) {
    if (absl::Status status = CheckBalance(balance); !status.ok()) return status;
  }
  if (absl::Status status = CheckRoutes(report); !status.ok()) return status;

  const absl::Time end = report.has_end() ? absl::FromUnixSeconds(report.end().seconds()) : now;
  // The window's oldest bucket expires in a moment: what is older than the window counts as its oldest whole bucket.
  const absl::Time oldest = now - options_.window + options_.bucket;
  const int64_t bucket = BucketOf(std::clamp(end, std::min(oldest, now), now));
  std::vector<bool> has_cells;
  for (const v1::TaskTokens& task : report.task_tokens()) {
    has_cells.push_back(task.prefill_tokens() != 0 || task.decode_tokens() != 0);
  }
  for (const v1::LoadCount& count : report.counts()) has_cells[count.task()] = true;
  // Task names first and once: which task finds room must not depend on the order of the counts.
  std::vector<std::string> names;
  for (const v1::TaskTokens& task : report.task_tokens()) {
    names.push_back(Shown(task.task()));
    const std::string& name = names.back();
    // Its room is taken before the next one looks for some; the cells below count in it.
    if (has_cells[names.size() - 1] && name != kPooledTask) tasks_.try_emplace(name);
    for (const auto& [phase, tokens] :
         {std::pair(v1::PHASE_PREFILL, task.prefill_tokens()), std::pair(v1::PHASE_DECODE, task.decode_tokens())}) {
      if (tokens == 0) continue;
      const CellId id{bucket, phase, name};
      CellOf(id).entered += tokens;
      total_tokens_ += tokens;
      dirty_.insert(id);
    }
  }
  for (const v1::LoadCount& count : report.counts()) {
    const CellId id{bucket, count.phase(), names[count.task()]};
    const size_t index = static_cast<size_t>(count.layer()) * experts_ + count.expert();
    CellOf(id).tokens[index] += static_cast<double>(count.tokens());
    phase_tokens_[id.phase][index] += static_cast<double>(count.tokens());
    dirty_.insert(id);
  }
  for (const v1::RouteSample& sample : report.route_samples()) {
    if (experts_per_token_ == 0) break;
    const v1::TaskTokens& task = report.task_tokens(sample.task());
    const int64_t population = sample.phase() == v1::PHASE_DECODE ? task.decode_tokens() : task.prefill_tokens();
    const CellId id{bucket, sample.phase(), names[sample.task()]};
    AddRoutes({sample.experts().data(), static_cast<size_t>(sample.experts_size())},
              static_cast<double>(population) / sample.tokens(), CellOf(id));
    dirty_.insert(id);
  }
  return absl::OkStatus();
}

void LoadWindow::Expire(absl::Time now) {
  const int64_t end = BucketOf(now - options_.window) + absl::ToInt64Seconds(options_.bucket);
  while (!cells_.empty() && cells_.begin()->first.bucket < end) {
    const auto& [id, cell] = *cells_.begin();
    total_tokens_ -= cell.entered;
    std::vector<double>& sum = phase_tokens_[id.phase];
    for (size_t i = 0; i < sum.size(); ++i) sum[i] -= cell.tokens[i];
    if (auto task = tasks_.find(id.task); task != tasks_.end() && --task->second == 0) tasks_.erase(task);
    dirty_.erase(id);
    expired_.insert(id);
    cells_.erase(cells_.begin());
  }
}

std::vector<StoreWrite> LoadWindow::TakeWrites() {
  std::vector<StoreWrite> writes;
  for (const CellId& id : expired_) writes.push_back({Key(id), std::nullopt});
  for (const CellId& id : dirty_) {
    const Cell& cell = cells_.at(id);
    store::LoadCellRecord record;
    record.set_entered(cell.entered);
    for (size_t i = 0; i < cell.tokens.size(); ++i) {
      if (cell.tokens[i] == 0) continue;
      record.add_index(static_cast<uint32_t>(i));
      record.add_tokens(static_cast<uint64_t>(cell.tokens[i]));
    }
    record.mutable_routes()->Assign(cell.routes.begin(), cell.routes.end());
    record.mutable_stands_for()->Assign(cell.stands_for.begin(), cell.stands_for.end());
    writes.push_back({Key(id), record.SerializeAsString()});
  }
  expired_.clear();
  dirty_.clear();
  return writes;
}

void LoadWindow::Load(std::string_view key, std::string_view value) {
  const std::string prefix = StorePrefix(group_);
  BALLAST_CHECK(key.starts_with(prefix)) << key;
  const std::vector<std::string> parts =
      absl::StrSplit(std::string(key.substr(prefix.size())), absl::MaxSplits('/', 2));
  CellId id{};
  store::LoadCellRecord record;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &id.bucket) || !absl::SimpleAtoi(parts[1], &id.phase) ||
      !record.ParseFromArray(value.data(), static_cast<int>(value.size())) ||
      record.index_size() != record.tokens_size()) {
    return;
  }
  id.task = parts[2];
  for (const uint32_t index : record.index()) {
    if (index >= static_cast<uint32_t>(layers_) * static_cast<uint32_t>(experts_)) return;
  }
  if (!phase_tokens_.contains(id.phase)) return;
  Cell& cell = CellOf(id);
  for (int i = 0; i < record.index_size(); ++i) {
    cell.tokens[record.index(i)] += static_cast<double>(record.tokens(i));
    phase_tokens_[id.phase][record.index(i)] += static_cast<double>(record.tokens(i));
  }
  cell.entered += record.entered();
  total_tokens_ += record.entered();
  if (experts_per_token_ == 0 || record.routes_size() != record.stands_for_size() * static_cast<int>(route_width()) ||
      std::any_of(record.routes().begin(), record.routes().end(),
                  [this](int32_t e) { return e < 0 || e >= experts_; })) {
    return;
  }
  cell.routes.assign(record.routes().begin(), record.routes().end());
  cell.stands_for.assign(record.stands_for().begin(), record.stands_for().end());
}

int64_t LoadWindow::SampledTokens(const std::string& task) const {
  int64_t tokens = 0;
  for (const auto& [id, cell] : cells_) {
    if (id.task == task) tokens += static_cast<int64_t>(cell.stands_for.size());
  }
  return tokens;
}

int64_t LoadWindow::total_routes() const {
  int64_t tokens = 0;
  for (const auto& [id, cell] : cells_) tokens += static_cast<int64_t>(cell.stands_for.size());
  return tokens;
}

std::vector<std::map<std::string, int64_t>> LoadWindow::TasksByBucket() const {
  std::map<int64_t, std::map<std::string, int64_t>> buckets;
  for (const auto& [id, cell] : cells_) {
    if (cell.entered > 0) buckets[id.bucket][id.task] += cell.entered;
  }
  std::vector<std::map<std::string, int64_t>> out;
  for (auto& [start, tasks] : buckets) out.push_back(std::move(tasks));
  return out;
}

Routes LoadWindow::SampledRoutes(const TaskMix& mix, int64_t max_tokens) const {
  struct Sampled {
    std::vector<const int32_t*> tokens;
    std::vector<double> stands_for;
  };
  std::map<std::string, Sampled> sampled;
  std::map<std::string, double> parts;
  for (const auto& [id, cell] : cells_) {
    parts[id.task] += static_cast<double>(cell.entered);
    for (size_t t = 0; t < cell.stands_for.size(); ++t) {
      Sampled& task = sampled[id.task];
      task.tokens.push_back(cell.routes.data() + t * route_width());
      task.stands_for.push_back(cell.stands_for[t]);
    }
  }
  if (!mix.empty()) parts = {mix.begin(), mix.end()};
  std::erase_if(sampled, [&](const auto& task) { return !parts.contains(task.first) || parts.at(task.first) <= 0; });
  Routes out{layers_, experts_, experts_per_token_, {}};
  const auto k = static_cast<size_t>(experts_per_token_);
  for (const auto& [name, task] : sampled) {
    TaskRoutes& routes = out.tasks.emplace_back();
    routes.name = name;
    routes.weight = parts.at(name);
    const int64_t most = std::max<int64_t>(1, max_tokens / static_cast<int64_t>(sampled.size()));
    const auto count = static_cast<int32_t>(std::min(most, static_cast<int64_t>(task.tokens.size())));
    routes.experts.resize(layers_);
    for (const int32_t t : Resample(task.stands_for, count, .5)) {
      for (int32_t l = 0; l < layers_; ++l) {
        const int32_t* const chosen = task.tokens[t] + l * k;
        routes.experts[l].insert(routes.experts[l].end(), chosen, chosen + k);
      }
    }
  }
  return out;
}

bool LoadWindow::Selected(const Selection& selection, const CellId& id, absl::Time now) const {
  if (selection.phase.has_value() && id.phase != *selection.phase) return false;
  if (selection.task.has_value() && id.task != *selection.task) return false;
  return !selection.last.has_value() || id.bucket >= BucketOf(now - *selection.last);
}

std::vector<double> LoadWindow::Tokens(const Selection& selection, absl::Time now) const {
  std::vector<double> sum(static_cast<size_t>(layers_) * experts_);
  if (!selection.task.has_value() && !selection.last.has_value()) {
    for (const auto& [phase, tokens] : phase_tokens_) {
      if (selection.phase.has_value() && phase != *selection.phase) continue;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += tokens[i];
    }
    return sum;
  }
  for (const auto& [id, cell] : cells_) {
    if (!Selected(selection, id, now)) continue;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += cell.tokens[i];
  }
  return sum;
}

std::vector<LoadWindow::TaskTotal> LoadWindow::Tasks(const Selection& selection, absl::Time now) const {
  std::map<std::string, TaskTotal> totals;
  for (const auto& [id, cell] : cells_) {
    if (!Selected(selection, id, now)) continue;
    TaskTotal& total = totals[id.task];
    total.task = id.task;
    (id.phase == v1::PHASE_PREFILL ? total.prefill : total.decode) += cell.entered;
  }
  std::vector<TaskTotal> sorted;
  for (auto& [task, total] : totals) sorted.push_back(std::move(total));
  return sorted;
}

absl::Time LoadWindow::Start(const Selection& selection, absl::Time now) const {
  for (const auto& [id, cell] : cells_) {
    if (Selected(selection, id, now)) return absl::FromUnixSeconds(id.bucket);
  }
  return now;
}

std::vector<LayerLevel> LevelByLayer(const Placement& placement, std::span<const uint32_t> speeds,
                                     const std::vector<double>& tokens) {
  std::vector<LayerLevel> levels(placement.num_layers);
  const std::vector<LayerReplicas> layers = ByLayer(placement);
  for (int32_t l = 0; l < placement.num_layers; ++l) {
    LayerLevel& level = levels[l];
    level.worker_tokens.resize(placement.workers.size());
    for (int32_t e = 0; e < placement.num_experts; ++e) {
      double weights = 0;
      for (int32_t r = layers[l].begin[e]; r < layers[l].begin[e + 1]; ++r) weights += layers[l].replicas[r].weight;
      const double load = tokens[static_cast<size_t>(l) * placement.num_experts + e];
      for (int32_t r = layers[l].begin[e]; r < layers[l].begin[e + 1]; ++r) {
        level.worker_tokens[layers[l].replicas[r].worker] += load * layers[l].replicas[r].weight / weights;
      }
    }
    double sum = 0;
    double max = 0;
    double all = 0;  // speeds
    for (size_t w = 0; w < level.worker_tokens.size(); ++w) {
      const double speed = speeds.empty() ? 1 : speeds[w];
      sum += level.worker_tokens[w];
      max = std::max(max, level.worker_tokens[w] / speed);
      all += speed;
    }
    if (max > 0) level.balancedness = sum / all / max;
  }
  return levels;
}

double MeanBalancedness(const std::vector<LayerLevel>& layers) {
  double sum = 0;
  int count = 0;
  for (const LayerLevel& layer : layers) {
    if (std::all_of(layer.worker_tokens.begin(), layer.worker_tokens.end(), [](double load) { return load == 0; })) {
      continue;
    }
    sum += layer.balancedness;
    ++count;
  }
  return count == 0 ? 0 : sum / count;
}

}  // namespace ballast
