#include "controller/ctl/top.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/output.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// A GPU's bar is full at twice the mean.
constexpr double kFullBar = 2;
// Lines that a list gets before another gets more, its head counted.
constexpr size_t kFew = 6;
constexpr int kLongestName = 24;
// Columns of a GPU's line beside its name and bar.
constexpr int kGpuColumns = 44;

struct Key {
  char key;
  const char* shown;
  TopSort sort;
};
constexpr Key kSortKeys[] = {{'l', "l load", TopSort::kLoad},
                             {'r', "r rank", TopSort::kRank},
                             {'n', "n running", TopSort::kRunning},
                             {'w', "w waiting", TopSort::kWaiting},
                             {'k', "k KV", TopSort::kKvCache}};

// At most `columns` code points, without what a terminal would obey: names are other people's.
std::string Cut(const std::string& text, int columns) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if ((c & 0xC0) != 0x80 && columns-- <= 0) break;
    // U+0080 to U+009F are controls as well: U+009B does what ESC [ does.
    const bool c1 = c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    out += c1 || absl::ascii_iscntrl(c) ? '?' : text[i];
    if (c1) ++i;
  }
  return out;
}

std::string Bar(double ratio, int columns) {
  const auto filled = static_cast<int>(std::lround(std::clamp(ratio / kFullBar, 0.0, 1.0) * columns));
  std::string bar = absl::StrCat(std::string(filled, '#'), std::string(columns - filled, ' '));
  // The mean.
  if (filled <= columns / 2) bar[columns / 2] = '|';
  return bar;
}

std::string PlanLine(const v1::Plan& plan) {
  const std::string line = absl::StrFormat("plan %s %s: balancedness %.3f to %.3f", plan.id(), EnumText(plan.state()),
                                           plan.balancedness_before(), plan.balancedness_after());
  if (plan.state() == v1::PLAN_STATE_PROPOSED) {
    return absl::StrCat(line, ", ", plan.moves_total(), " moves; ballastctl approve ", plan.id());
  }
  return absl::StrCat(line, ", wave ", std::min(plan.waves_done() + 1, plan.waves_total()), " of ", plan.waves_total(),
                      ", ", plan.moves_done(), " of ", plan.moves_total(), " moves, ", HumanBytes(plan.bytes_done()),
                      " of ", HumanBytes(plan.bytes_total()));
}

std::vector<std::string> GroupLines(const TopView& view) {
  std::vector<std::string> lines = {
      "  GROUP                     STATE      MODE              EPOCH     GPUS  BALANCEDNESS  "
      "TOKENS IN WINDOW  POLICY"};
  for (const v1::Group& g : view.groups) {
    lines.push_back(absl::StrFormat(
        "%c %-24s  %-9s  %-16s  %5d  %7s  %12s  %16d  %s%s", g.name() == view.group ? '>' : ' ',
        Cut(g.name(), kLongestName), EnumText(g.state()),
        absl::StrCat(EnumText(g.mode()), g.paused() ? " (paused)" : ""), g.epoch(),
        absl::StrCat(g.view().members_size(), "/", g.size()),
        g.balancedness() > 0 ? absl::StrFormat("%.3f", g.balancedness()) : "-", g.window_tokens(), g.policy(),
        g.missing_total() > 0 ? absl::StrCat("  ", g.missing_total(), " EXPERTS WITHOUT A LIVE REPLICA") : ""));
  }
  return lines;
}

// What `sort` is about, from the least to come first.
double SortValue(const v1::Worker& worker, TopSort sort) {
  switch (sort) {
    case TopSort::kLoad:
      return -worker.load_ratio();
    case TopSort::kRank:
      // Those that are not in the view come last.
      return worker.rank() < 0 ? std::numeric_limits<double>::max() : worker.rank();
    case TopSort::kRunning:
      return -worker.requests_running();
    case TopSort::kWaiting:
      return -worker.requests_waiting();
    case TopSort::kKvCache:
      return -worker.kv_cache_used_ratio();
  }
  return 0;
}

std::vector<std::string> GpuLines(const TopView& view, TopSort sort, int columns) {
  std::vector<const v1::Worker*> sorted;
  size_t name = 3;
  for (const v1::Worker& worker : view.workers) {
    sorted.push_back(&worker);
    name = std::max(name, worker.name().size());
  }
  std::sort(sorted.begin(), sorted.end(), [&](const v1::Worker* a, const v1::Worker* b) {
    const auto key = [sort](const v1::Worker& w) {
      return std::tuple(SortValue(w, sort), SortValue(w, TopSort::kRank), w.name());
    };
    return key(*a) < key(*b);
  });
  const int wide = std::min(static_cast<int>(name), kLongestName);
  const int bar = std::clamp(columns - wide - kGpuColumns, 8, 60);
  std::vector<std::string> lines = {absl::StrFormat("%-*s  %-*s %6s  %-12s %4s %4s %5s", wide, "GPU", bar, "LOAD",
                                                    "MEAN=1", "STATE", "RUN", "WAIT", "KV")};
  for (const v1::Worker* w : sorted) {
    const double beside_mean = w->load_ratio() * view.placement.workers_size();
    const std::string state =
        w->drain() == v1::DRAIN_STATE_UNSPECIFIED ? EnumText(w->state()) : absl::StrCat("drain ", EnumText(w->drain()));
    lines.push_back(absl::StrFormat("%-*s  %s %6.2f  %-12s %4d %4d %4.0f%%", wide, Cut(w->name(), wide),
                                    Bar(beside_mean, bar), beside_mean, state, w->requests_running(),
                                    w->requests_waiting(), 100 * w->kv_cache_used_ratio()));
  }
  return lines;
}

std::vector<std::string> LayerLines(const TopView& view) {
  std::vector<std::pair<double, int>> sorted;
  for (const v1::LayerLoad& layer : view.load.layers()) {
    if (layer.balancedness() > 0) sorted.emplace_back(layer.balancedness(), layer.layer());
  }
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::string> lines = {"LAYER  BALANCEDNESS"};
  for (const auto& [level, layer] : sorted) lines.push_back(absl::StrFormat("%5d  %12.3f", layer, level));
  return lines;
}

std::vector<std::string> ExpertLines(const TopView& view) {
  std::map<std::pair<int, int>, int> replicas;
  for (const v1::Replica& r : view.placement.replicas()) ++replicas[{r.layer(), r.expert()}];
  std::vector<std::tuple<double, int, int>> sorted;
  for (const v1::LayerLoad& layer : view.load.layers()) {
    double total = 0;
    for (const double t : layer.tokens()) total += t;
    for (int e = 0; total > 0 && e < layer.tokens_size(); ++e) {
      sorted.emplace_back(-layer.tokens(e) * layer.tokens_size() / total, layer.layer(), e);
    }
  }
  const size_t shown = std::min(kFew - 1, sorted.size());
  std::partial_sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(shown), sorted.end());
  std::vector<std::string> lines = {"HOTTEST  LAYER  EXPERT  MEAN=1  REPLICAS"};
  for (size_t i = 0; i < shown; ++i) {
    const auto& [ratio, layer, expert] = sorted[i];
    lines.push_back(
        absl::StrFormat("%7d  %5d  %6d  %6.1f  %8d", i + 1, layer, expert, -ratio, replicas[{layer, expert}]));
  }
  return lines;
}

std::vector<std::string> TaskLines(const TopView& view) {
  std::vector<const v1::TaskLoad*> sorted;
  for (const v1::TaskLoad& task : view.load.tasks()) sorted.push_back(&task);
  std::stable_sort(sorted.begin(), sorted.end(), [](const v1::TaskLoad* a, const v1::TaskLoad* b) {
    return a->prefill_tokens() + a->decode_tokens() > b->prefill_tokens() + b->decode_tokens();
  });
  std::vector<std::string> lines = {"TASK                      PREFILL TOKENS  DECODE TOKENS"};
  for (const v1::TaskLoad* task : sorted) {
    lines.push_back(absl::StrFormat("%-24s  %14d  %13d",
                                    task->task().empty() ? "(unlabelled)" : Cut(task->task(), kLongestName),
                                    task->prefill_tokens(), task->decode_tokens()));
  }
  return lines;
}

// Of the wave that is under way.
std::vector<std::string> MoveLines(const TopView& view) {
  std::vector<std::string> lines = {"IN FLIGHT  LAYER  EXPERT  FROM -> TO"};
  if (!view.plan.has_value()) return lines;
  const v1::GetPlanResponse& plan = *view.plan;
  const int wave = plan.plan().waves_done();
  const bool under_way = plan.plan().state() > v1::PLAN_STATE_APPROVED && plan.plan().state() < v1::PLAN_STATE_DONE;
  if (!under_way || wave >= plan.wave_moves_size()) return lines;
  int begin = 0;
  for (int i = 0; i < wave; ++i) begin += plan.wave_moves(i);
  for (int i = begin; i < std::min(begin + plan.wave_moves(wave), plan.moves_size()); ++i) {
    const v1::Move& move = plan.moves(i);
    lines.push_back(absl::StrFormat("%9s  %5d  %6d  %s -> %s", HumanBytes(move.bytes()), move.layer(), move.expert(),
                                    move.source().empty() ? "host memory or checkpoint" : move.source(),
                                    move.destination()));
  }
  return lines;
}

// How many lines of each list there is room for. Each wants its head and a first line, then a few, then all; from the
// first list to the last each time. A list takes two lines more: an empty one before it, and one for what has no room.
std::vector<size_t> Share(const std::vector<std::vector<std::string>>& lists, int room) {
  std::vector<size_t> shown(lists.size(), 0);
  for (const size_t wanted : {size_t{2}, kFew, std::numeric_limits<size_t>::max()}) {
    for (size_t i = 0; i < lists.size(); ++i) {
      if (lists[i].size() < 2) continue;
      const int least = shown[i] == 0 ? 4 : 1;
      if (room < least) continue;
      if (shown[i] == 0) room -= 2;
      const size_t more = std::min(std::min(lists[i].size(), wanted) - shown[i], static_cast<size_t>(room));
      shown[i] += more;
      room -= static_cast<int>(more);
    }
  }
  return shown;
}

std::string HelpLine(TopSort sort) {
  std::string help = "q quit  g next group  sort by:";
  for (const Key& key : kSortKeys)
    absl::StrAppend(&help, key.sort == sort ? " [" : " ", key.shown, key.sort == sort ? "]" : "");
  return help;
}

// The group behind `group`, round and round.
std::string NextGroup(const TopView& view) {
  for (size_t i = 0; i < view.groups.size(); ++i) {
    if (view.groups[i].name() == view.group) return view.groups[(i + 1) % view.groups.size()].name();
  }
  return "";
}

}  // namespace

std::string TopText(const TopView& view, TopSort sort, TopSize size) {
  std::vector<std::string> lines = {
      absl::StrCat(absl::FormatTime("%H:%M:%S UTC  ", view.at, absl::UTCTimeZone()), HelpLine(sort))};
  if (view.groups.empty()) {
    lines.push_back("no groups; engines that are planned for without workers: ballastctl get engines");
  }
  if (view.plan.has_value()) lines.push_back(PlanLine(view.plan->plan()));
  const std::vector<std::vector<std::string>> lists = {
      GroupLines(view),  MoveLines(view),  GpuLines(view, sort, size.columns),
      ExpertLines(view), LayerLines(view), TaskLines(view)};
  const std::vector<size_t> shown = Share(lists, size.lines - static_cast<int>(lines.size()));
  for (size_t i = 0; i < lists.size(); ++i) {
    if (shown[i] == 0) continue;
    lines.emplace_back();
    lines.insert(lines.end(), lists[i].begin(), lists[i].begin() + static_cast<std::ptrdiff_t>(shown[i]));
    if (shown[i] < lists[i].size()) lines.push_back(absl::StrCat("and ", lists[i].size() - shown[i], " more"));
  }
  if (view.load.layers().empty() && !view.groups.empty()) lines.push_back("no load in the window");
  lines.resize(std::min(lines.size(), static_cast<size_t>(std::max(size.lines, 1))));
  std::string out;
  for (const std::string& line : lines) {
    std::string fitting = Cut(line, size.columns);
    fitting.erase(fitting.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, fitting, "\n");
  }
  return out;
}

void RunTop(const TopLook& look, std::string group, TopView view, absl::Duration interval, Clock& clock,
            TopScreen& screen) {
  TopSort sort = TopSort::kLoad;
  std::string error;
  absl::Time next = clock.Now() + interval;
  for (;;) {
    TopSize size = screen.size();
    if (error.empty()) {
      screen.Draw(TopText(view, sort, size));
    } else {
      --size.lines;
      screen.Draw(absl::StrCat(Cut(error, size.columns), "\n", TopText(view, sort, size)));
    }
    const std::optional<char> key = screen.Key(next);
    if (key == 'q') return;
    for (const Key& k : kSortKeys) {
      if (key == k.key) sort = k.sort;
    }
    if (key == 'g') group = NextGroup(view);
    if (key != 'g' && clock.Now() < next) continue;
    absl::StatusOr<TopView> seen = look(group);
    error =
        seen.ok() ? "" : absl::StrCat("no answer: ", seen.status().message(), "; what follows is what was seen last");
    if (seen.ok()) view = *std::move(seen);
    next = clock.Now() + interval;
  }
}

}  // namespace ballast
