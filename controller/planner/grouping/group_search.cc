#include "controller/planner/grouping/group_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include "controller/planner/anneal.h"
#include "controller/planner/grouping/coactivation.h"
#include "controller/planner/grouping/cover.h"
#include "controller/planner/grouping/tasks_alone.h"
#include "proto/base/check.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

// Hops that a pair beyond a limit of load counts as. A pair can leave a busy worker for one hop, so at two it does.
constexpr double kExcess = 2;

// The temperature at the end, of what a change makes out at the start.
constexpr double kCold = .005;

// A limit of single tasks that is proven impossible becomes this much of what is not.
constexpr double kNearLeast = 1.1;

// The part of a layer's hops that the moves of all its replicas count as, at most.
constexpr double kMostForMoves = .03;

class GroupSearch {
 public:
  // `assignment` is of the packs' replicas.
  GroupSearch(const GroupProblem& problem, const Packs& start, Assignment assignment);
  // Of the problem's proposals so many.
  void Run(double part);
  const Assignment& best() const { return best_; }
  GroupedLayer Result() const;

 private:
  // Visits and pairs by task and worker: what the energy is computed from. Integers: no drift.
  struct Counts {
    std::vector<int64_t> visits;
    std::vector<int64_t> pairs;
  };
  struct Cached {
    Counts counts;
    int64_t version = -1;
  };
  // At most two experts that change, and how they were.
  struct Undo {
    int32_t expert = -1;
    Assignment::Expert was;
  };

  size_t Cells() const { return static_cast<size_t>(cover_.tasks()) * workers_; }
  void Zero(Counts& counts) const {
    counts.visits.assign(Cells(), 0);
    counts.pairs.assign(Cells(), 0);
  }
  double Hops(const Counts& counts) const;
  // But for what single tasks have beyond their limit.
  double Energy(const Counts& counts, int64_t moves) const;
  double TaskCost(double excess) const { return kExcess * pairs_per_token_ * excess; }
  double Loads(const Counts& counts, double limit, double* maxvio) const;
  void AddSingle(int32_t expert, const Assignment::Expert& at, int64_t sign, Counts& counts) const;
  Counts Count(const Assignment& assignment) const;
  bool Holds(int32_t e, int32_t w) const {
    const auto& workers = assignment_.experts[e].workers;
    return std::find(workers.begin(), workers.end(), w) != workers.end();
  }
  void Save(int32_t expert) { undo_[undone_++] = {expert, assignment_.experts[expert]}; }
  void Replace(int32_t e, int32_t from, int32_t to);
  bool ProposeSwap();
  bool ProposeReplica();
  bool ProposeAim();
  bool Apply(uint64_t kind);
  // What single tasks have beyond, after what has been applied.
  double TryAlone();
  // As after an assignment.
  static double SetAlone(const Assignment& assignment, TasksAlone& alone);
  double CostOf(const Assignment& assignment, const Counts& counts) const;
  void HoldTasks(int64_t proposals);
  // How much a change makes out here, on average; 0: nothing does. `change` tries one, below 0: it could not.
  template <typename Change>
  static double HowMuch(const Change& change);
  double Hot() const { return problem_.current ? .02 : .2; }
  // With shares chosen for the task.
  double AloneMaxVio(int32_t task, const DispatchTable& table) const;
  // The energy after what has been applied; delta_ and trial_ belong to it.
  double Try();
  void Accept();
  void Reject();
  bool New(int32_t e, int32_t w) const { return !stands_.empty() && !stands_[e * workers_ + w]; }

  const GroupProblem& problem_;
  const int32_t workers_;
  const Cover cover_;
  internal::Random random_{1};
  internal::Tolerance tolerance_;
  std::vector<double> weight_;       // [tasks] part of the mix
  std::vector<double> hop_;          // [tasks][workers] what a visit adds to the energy
  std::vector<double> over_target_;  // [workers] 1 / the part of all pairs that is its own were all level
  std::vector<double> pair_;         // [tasks] a pair's part of the task's
  double pairs_per_token_ = 0;
  double move_price_ = 0;
  std::vector<bool> stands_;         // [experts][workers]; empty: nothing does
  std::optional<TasksAlone> alone_;  // where tasks have a limit

  Assignment assignment_;
  std::vector<std::pair<int32_t, int32_t>> slot_;  // (expert, worker)
  int64_t spare_ = 0;
  int64_t moves_ = 0;
  double excess_ = 0;  // what alone_ has
  Counts counts_;
  Cover::Program program_;
  double energy_ = 0;
  int64_t version_ = 0;
  std::vector<Cached> cache_;  // [experts]

  Undo undo_[2];
  int32_t undone_ = 0;
  int32_t slots_changed_[2] = {-1, -1};
  std::pair<int32_t, int32_t> slots_were_[2];
  Cover::Program trial_;
  Counts delta_;
  int64_t delta_moves_ = 0;

  Assignment best_;
  double best_energy_ = 0;
};

GroupSearch::GroupSearch(const GroupProblem& problem, const Packs& start, Assignment assignment)
    : problem_(problem), workers_(static_cast<int32_t>(problem.slots.size())), cover_(*problem.layer, workers_) {
  double speeds = 0;
  for (int32_t w = 0; w < workers_; ++w) speeds += problem.speed.empty() ? 1 : problem.speed[w];
  for (int32_t w = 0; w < workers_; ++w) {
    over_target_.push_back(speeds / (problem.speed.empty() ? 1 : problem.speed[w]));
  }
  for (int32_t f = 0; f < cover_.tasks(); ++f) {
    const auto tokens = static_cast<double>(cover_.tokens()[f]);
    const auto pairs = static_cast<double>(cover_.pairs()[f]);
    weight_.push_back(problem.layer->tasks[f].weight);
    pair_.push_back(pairs > 0 ? 1 / pairs : 0);
    if (pairs > 0) pairs_per_token_ += weight_[f] * pairs / tokens;
    for (int32_t w = 0; w < workers_; ++w) {
      hop_.push_back(tokens > 0 ? weight_[f] / tokens * (problem.price.empty() ? 1 : problem.price[w]) : 0);
    }
  }
  assignment_ = std::move(assignment);
  for (int32_t w = 0; w < workers_; ++w) {
    for (const int32_t e : start[w]) slot_.emplace_back(e, w);
  }
  for (const Assignment::Expert& expert : assignment_.experts) {
    BALLAST_CHECK(!expert.workers.empty()) << "an expert without a worker";
    spare_ += static_cast<int64_t>(expert.workers.size()) - 1;
  }
  if (problem.current) {
    stands_.resize(static_cast<size_t>(cover_.experts()) * workers_);
    for (int32_t w = 0; w < workers_; ++w) {
      for (const int32_t e : (*problem.current)[w]) stands_[e * workers_ + w] = true;
    }
    for (const auto& [e, w] : slot_) moves_ += New(e, w);
    const double hops = Hops(Count(Assign(*problem.current, cover_.experts())));
    move_price_ = std::min(problem.move_price, kMostForMoves * hops / static_cast<double>(slot_.size()));
  }
  if (std::isfinite(problem.limits.task_maxvio)) {
    std::vector<double> part;
    for (const double over : over_target_) part.push_back(1 / over);
    // Below what is proven impossible there is nothing to look for, nor right above it.
    const double least = LeastTaskMaxVio(*problem.layer, problem.slots, problem.speed);
    alone_.emplace(*problem.layer, part, std::max(problem.limits.task_maxvio, kNearLeast * least));
    excess_ = SetAlone(assignment_, *alone_);
  }
  counts_ = Count(assignment_);
  cover_.Compile(assignment_, program_);
  energy_ = Energy(counts_, moves_) + TaskCost(excess_);
  best_ = assignment_;
  best_energy_ = energy_;
  cache_.resize(cover_.experts());
}

void GroupSearch::AddSingle(int32_t expert, const Assignment::Expert& at, int64_t sign, Counts& counts) const {
  if (at.workers.size() != 1) return;
  for (int32_t f = 0; f < cover_.tasks(); ++f) {
    counts.pairs[f * workers_ + at.workers[0]] += sign * cover_.Count(expert, f);
  }
}

GroupSearch::Counts GroupSearch::Count(const Assignment& assignment) const {
  Counts counts;
  Zero(counts);
  Cover::Program program;
  cover_.Compile(assignment, program);
  cover_.Evaluate(program, Cover::kAll, Cover::kNone, 1, counts.visits, counts.pairs);
  for (int32_t e = 0; e < cover_.experts(); ++e) AddSingle(e, assignment.experts[e], 1, counts);
  return counts;
}

// Loads of the mix: the sum of what is beyond (1 + limit) of each worker's part, and the most.
double GroupSearch::Loads(const Counts& counts, double limit, double* maxvio) const {
  double excess = 0, most = 0;
  for (int32_t w = 0; w < workers_; ++w) {
    double load = 0;
    for (int32_t f = 0; f < cover_.tasks(); ++f) {
      load += weight_[f] * pair_[f] * static_cast<double>(counts.pairs[f * workers_ + w]);
    }
    most = std::max(most, load * over_target_[w]);
    excess += std::max(0.0, load - (1 + limit) / over_target_[w]);
  }
  if (maxvio != nullptr) *maxvio = most - 1;
  return excess;
}

double GroupSearch::Hops(const Counts& counts) const {
  double hops = -1;
  for (size_t i = 0; i < counts.visits.size(); ++i) hops += hop_[i] * static_cast<double>(counts.visits[i]);
  return hops;
}

double GroupSearch::Energy(const Counts& counts, int64_t moves) const {
  double excess = 0;
  if (std::isfinite(problem_.limits.maxvio)) excess += Loads(counts, problem_.limits.maxvio, nullptr);
  return Hops(counts) + kExcess * pairs_per_token_ * excess + move_price_ * static_cast<double>(moves);
}

// Expert e's replica on `from` is on `to` now, and with it what aimed there.
void GroupSearch::Replace(int32_t e, int32_t from, int32_t to) {
  Assignment::Expert& expert = assignment_.experts[e];
  *std::find(expert.workers.begin(), expert.workers.end(), from) = to;
  for (int32_t& aim : expert.aim) aim = aim == from ? to : aim;
  delta_moves_ += New(e, to) - New(e, from);
}

bool GroupSearch::ProposeSwap() {
  const uint64_t bits = random_.Next();
  const auto n = static_cast<uint32_t>(slot_.size());
  const auto i = static_cast<int32_t>(internal::Random::Below(static_cast<uint32_t>(bits), n));
  const auto j = static_cast<int32_t>(internal::Random::Below(static_cast<uint32_t>(bits >> 32), n));
  const auto [a, x] = slot_[i];
  const auto [b, y] = slot_[j];
  if (x == y || a == b || Holds(a, y) || Holds(b, x)) return false;
  Save(a);
  Save(b);
  Replace(a, x, y);
  Replace(b, y, x);
  slots_changed_[0] = i;
  slots_were_[0] = slot_[i];
  slots_changed_[1] = j;
  slots_were_[1] = slot_[j];
  slot_[i] = {b, x};
  slot_[j] = {a, y};
  return true;
}

// A spare replica becomes one of another expert, which takes a quarter or so of what is free to choose.
bool GroupSearch::ProposeReplica() {
  const uint64_t bits = random_.Next();
  const auto i =
      static_cast<int32_t>(internal::Random::Below(static_cast<uint32_t>(bits), static_cast<uint32_t>(slot_.size())));
  const auto b = static_cast<int32_t>(
      internal::Random::Below(static_cast<uint32_t>(bits >> 32), static_cast<uint32_t>(cover_.experts())));
  const auto [a, x] = slot_[i];
  if (a == b || assignment_.experts[a].workers.size() < 2 || Holds(b, x)) return false;
  Save(a);
  Save(b);
  Assignment::Expert& gone = assignment_.experts[a];
  gone.workers.erase(std::find(gone.workers.begin(), gone.workers.end(), x));
  for (int32_t c = 0; c < Assignment::kClasses; ++c) {
    if (gone.aim[c] == x) gone.aim[c] = gone.workers[c % gone.workers.size()];
  }
  Assignment::Expert& more = assignment_.experts[b];
  more.workers.push_back(x);
  const auto replicas = static_cast<int32_t>(more.workers.size());
  const auto first = static_cast<int32_t>(bits >> 8 & 3);
  for (int32_t c = 0; c < std::max(1, Assignment::kClasses / replicas); ++c) {
    more.aim[(first + c) % Assignment::kClasses] = x;
  }
  delta_moves_ += New(b, x) - New(a, x);
  slots_changed_[0] = i;
  slots_were_[0] = slot_[i];
  slot_[i] = {b, x};
  return true;
}

bool GroupSearch::ProposeAim() {
  const uint64_t bits = random_.Next();
  const int32_t e =
      slot_[internal::Random::Below(static_cast<uint32_t>(bits), static_cast<uint32_t>(slot_.size()))].first;
  Assignment::Expert& expert = assignment_.experts[e];
  if (expert.workers.size() < 2) return false;
  Save(e);
  const auto to = internal::Random::Below(static_cast<uint32_t>(bits >> 32), expert.workers.size());
  int32_t& aim = expert.aim[bits >> 2 & 3];
  if ((bits >> 1 & 1) == 0 || expert.workers[to] == aim) {
    // Of several workers that a token visits the first gets it.
    if (to == 0) return false;
    std::swap(expert.workers[0], expert.workers[to]);
  } else {
    aim = expert.workers[to];
  }
  return true;
}

bool GroupSearch::Apply(uint64_t kind) {
  undone_ = 0;
  slots_changed_[0] = slots_changed_[1] = -1;
  delta_moves_ = 0;
  bool applied = false;
  if (spare_ == 0 || kind < 8) {
    applied = ProposeSwap();
  } else if (kind < 12) {
    applied = ProposeReplica();
  } else {
    applied = ProposeAim();
  }
  if (!applied) undone_ = 0;
  return applied;
}

double GroupSearch::Try() {
  cover_.Compile(assignment_, trial_);
  Zero(delta_);
  for (int32_t i = 0; i < undone_; ++i) {
    const int32_t e = undo_[i].expert;
    if (i == 0) {
      Cached& cached = cache_[e];
      if (cached.version != version_) {
        Zero(cached.counts);
        cover_.Evaluate(program_, e, Cover::kNone, 1, cached.counts.visits, cached.counts.pairs);
        cached.version = version_;
      }
      cover_.Evaluate(trial_, e, Cover::kNone, 1, delta_.visits, delta_.pairs);
      for (size_t c = 0; c < delta_.visits.size(); ++c) {
        delta_.visits[c] -= cached.counts.visits[c];
        delta_.pairs[c] -= cached.counts.pairs[c];
      }
    } else {
      cover_.Evaluate(trial_, e, undo_[0].expert, 1, delta_.visits, delta_.pairs);
      cover_.Evaluate(program_, e, undo_[0].expert, -1, delta_.visits, delta_.pairs);
    }
    AddSingle(e, undo_[i].was, -1, delta_);
    AddSingle(e, assignment_.experts[e], 1, delta_);
  }
  for (size_t c = 0; c < delta_.visits.size(); ++c) {
    delta_.visits[c] += counts_.visits[c];
    delta_.pairs[c] += counts_.pairs[c];
  }
  return Energy(delta_, moves_ + delta_moves_);
}

void GroupSearch::Accept() {
  std::swap(counts_, delta_);
  std::swap(program_, trial_);
  moves_ += delta_moves_;
  ++version_;
}

void GroupSearch::Reject() {
  for (int32_t i = 0; i < undone_; ++i) std::swap(assignment_.experts[undo_[i].expert], undo_[i].was);
  for (int32_t i = 0; i < 2; ++i) {
    if (slots_changed_[i] >= 0) slot_[slots_changed_[i]] = slots_were_[i];
  }
}

double GroupSearch::SetAlone(const Assignment& assignment, TasksAlone& alone) {
  for (size_t e = 0; e < assignment.experts.size(); ++e) {
    alone.Set(static_cast<int32_t>(e), assignment.experts[e].workers);
  }
  const double excess = alone.Excess();
  alone.Keep();
  return excess;
}

double GroupSearch::CostOf(const Assignment& assignment, const Counts& counts) const {
  double cost = Energy(counts, 0);
  if (alone_) {
    TasksAlone alone = *alone_;
    cost += TaskCost(SetAlone(assignment, alone));
  }
  return cost;
}

template <typename Change>
double GroupSearch::HowMuch(const Change& change) {
  double sum = 0;
  int64_t samples = 0;
  for (int32_t i = 0; i < 2000 && samples < 200; ++i) {
    const double made = change();
    if (made < 0) continue;
    sum += made;
    ++samples;
  }
  return samples == 0 ? 0 : sum / static_cast<double>(samples);
}

double GroupSearch::TryAlone() {
  for (int32_t i = 0; i < undone_; ++i) {
    alone_->Set(undo_[i].expert, assignment_.experts[undo_[i].expert].workers);
  }
  return alone_->Excess();
}

// Brings single tasks within their limit, or as near as search gets, whatever that costs in hops: changes that matter
// to them alone, the fewer the better where something stands.
void GroupSearch::HoldTasks(int64_t proposals) {
  if (excess_ == 0) return;
  const auto cost = [&](double excess, int64_t moves) {
    return TaskCost(excess) + move_price_ * static_cast<double>(moves);
  };
  const uint64_t kinds = spare_ == 0 ? 8 : 12;  // no aims: shares are chosen for each task
  Assignment best = assignment_;
  std::vector<std::pair<int32_t, int32_t>> best_slot = slot_;
  int64_t best_moves = moves_;
  double least = excess_;
  const double hot = HowMuch([&] {
    if (!Apply(random_.Next() % kinds)) return -1.0;
    const double change = std::abs(TaskCost(TryAlone() - excess_));
    alone_->Undo();
    Reject();
    return change;
  });
  if (hot == 0) return;
  const internal::Stage stages[] = {{0, Hot() * hot, kCold * hot, 1}};
  internal::Anneal(
      proposals, stages, [](int) {},
      [&](int64_t, float temperature) {
        if (least == 0) return;
        const uint64_t bits = random_.Next();
        if (!Apply((bits >> 40) % kinds)) return;
        if (moves_ + delta_moves_ > problem_.max_moves && delta_moves_ > 0) {
          Reject();
          return;
        }
        const double excess = TryAlone();
        if (cost(excess, moves_ + delta_moves_) - cost(excess_, moves_) > temperature * tolerance_(bits)) {
          alone_->Undo();
          Reject();
          return;
        }
        alone_->Keep();
        excess_ = excess;
        moves_ += delta_moves_;
        // Above rounding.
        if (excess_ < least - 1e-12) {
          least = excess_;
          best = assignment_;
          best_slot = slot_;
          best_moves = moves_;
        }
      });
  assignment_ = std::move(best);
  slot_ = std::move(best_slot);
  moves_ = best_moves;
  excess_ = SetAlone(assignment_, *alone_);
  counts_ = Count(assignment_);
  cover_.Compile(assignment_, program_);
  ++version_;
  energy_ = Energy(counts_, moves_) + TaskCost(excess_);
  best_ = assignment_;
  best_energy_ = energy_;
}

void GroupSearch::Run(double part) {
  if (slot_.size() < 2 || workers_ < 2 || pairs_per_token_ == 0) return;
  constexpr int64_t kPerSlot = 4000;
  constexpr int64_t kMostBlocks = 10'000'000;
  constexpr int32_t kBlockExperts = 64;
  int64_t blocks = 0;
  for (int32_t e = 0; e < cover_.experts(); ++e) blocks += cover_.Blocks(e);
  // Both experts of a change, before and after; a block takes the longer the more experts there are, and the more
  // replicas of each.
  const int64_t replicas = std::max<int64_t>(1, std::ssize(slot_) / cover_.experts() / 4);
  const int64_t each = replicas * std::max<int64_t>(1, 4 * blocks / std::min(kBlockExperts, cover_.experts()));
  const int64_t all = problem_.proposals > 0
                          ? problem_.proposals
                          : std::min(kPerSlot * static_cast<int64_t>(slot_.size()), kMostBlocks / each);
  const auto proposals = std::max<int64_t>(1, std::llround(part * static_cast<double>(all)));
  if (alone_) HoldTasks(proposals);
  const double held = excess_ + 1e-12;
  const double hot = HowMuch([&] {
    if (!Apply(random_.Next() >> 60)) return -1.0;
    const double change = std::abs(Try() + TaskCost(excess_) - energy_);
    Reject();
    return change;
  });
  if (hot == 0) return;
  const internal::Stage stages[] = {{0, Hot() * hot, kCold * hot, 1}};
  internal::Anneal(
      proposals, stages, [](int) {},
      [&](int64_t, float temperature) {
        const uint64_t bits = random_.Next();
        if (!Apply(bits >> 60)) return;
        if (moves_ + delta_moves_ > problem_.max_moves && delta_moves_ > 0) {
          Reject();
          return;
        }
        const bool places = alone_ && slots_changed_[0] >= 0;
        const auto refuse = [&] {
          if (places) alone_->Undo();
          Reject();
        };
        // Nothing is gained by what breaks a limit; it refuses about half of all changes, in less time than hops take.
        const double excess = places ? TryAlone() : excess_;
        if (excess > held) return refuse();
        const double energy = Try();
        if (energy + TaskCost(excess) > energy_ + temperature * tolerance_(bits)) return refuse();
        if (places) alone_->Keep();
        excess_ = excess;
        Accept();
        energy_ = energy + TaskCost(excess_);
        // Above rounding.
        if (energy_ < best_energy_ - 1e-12) {
          best_ = assignment_;
          best_energy_ = energy_;
        }
      });
}

GroupedLayer GroupSearch::Result() const {
  GroupedLayer out;
  const Counts counts = Count(best_);
  out.hops = -1;
  for (int32_t f = 0; f < cover_.tasks(); ++f) {
    if (cover_.tokens()[f] == 0) continue;
    int64_t visits = 0;
    for (int32_t w = 0; w < workers_; ++w) visits += counts.visits[f * workers_ + w];
    out.hops += weight_[f] * static_cast<double>(visits) / static_cast<double>(cover_.tokens()[f]);
  }
  Loads(counts, 0, &out.maxvio);
  out.cost = CostOf(best_, counts);
  if (problem_.current) {
    const Assignment before = Assign(*problem_.current, cover_.experts());
    out.cost_before = CostOf(before, Count(before));
    out.move_price = move_price_;
    for (int32_t e = 0; e < cover_.experts(); ++e) {
      for (const int32_t w : best_.experts[e].workers) out.moves += New(e, w);
    }
  }

  // Shares as they come out of the rule, tasks weighted; of 2^40 in all.
  Cover::Program program;
  cover_.Compile(best_, program);
  const std::vector<int64_t> flows = cover_.Flows(program);
  std::vector<std::vector<double>> flow_to(cover_.experts(), std::vector<double>(workers_));
  for (const Cover::Program::Shared& shared : program.shared) {
    for (int32_t r = shared.begin; r < shared.end; ++r) {
      for (int32_t f = 0; f < cover_.tasks(); ++f) {
        flow_to[shared.expert][program.worker[r]] +=
            weight_[f] * pair_[f] * static_cast<double>(flows[f * program.worker.size() + r]);
      }
    }
  }
  std::vector<int64_t> flow;
  out.table.begin.push_back(0);
  for (int32_t e = 0; e < cover_.experts(); ++e) {
    auto workers = best_.experts[e].workers;
    std::sort(workers.begin(), workers.end());
    for (const int32_t w : workers) {
      out.table.rank.push_back(w);
      flow.push_back(std::llround(std::ldexp(flow_to[e][w], 40)));
    }
    out.table.begin.push_back(static_cast<int32_t>(out.table.rank.size()));
  }
  out.table.weight.resize(flow.size());
  FlowToWeights(flow, out.table);
  for (int32_t f = 0; f < cover_.tasks(); ++f) out.task_maxvio = std::max(out.task_maxvio, AloneMaxVio(f, out.table));
  return out;
}

double GroupSearch::AloneMaxVio(int32_t task, const DispatchTable& table) const {
  if (cover_.pairs()[task] == 0) return 0;
  std::vector<int64_t> loads, flow(table.num_replicas());
  for (int32_t e = 0; e < cover_.experts(); ++e) loads.push_back(cover_.Count(e, task));
  ShareSolver solver(table, workers_, problem_.speed);
  solver.Solve(loads, flow);
  double most = 0;
  for (int32_t w = 0; w < workers_; ++w) {
    most = std::max(most, static_cast<double>(solver.rank_loads()[w]) * over_target_[w]);
  }
  return most * pair_[task] - 1;
}

Packs ToPacks(const Assignment& assignment, size_t workers) {
  Packs packs(workers);
  for (size_t e = 0; e < assignment.experts.size(); ++e) {
    for (const int32_t w : assignment.experts[e].workers) packs[w].push_back(static_cast<int32_t>(e));
  }
  return packs;
}

}  // namespace

std::vector<int32_t> AlikeWorkers(std::span<const int32_t> slots, std::span<const uint32_t> speed,
                                  std::span<const double> price) {
  std::vector<int32_t> kind;
  std::map<std::tuple<int32_t, uint32_t, double>, int32_t> known;
  for (size_t w = 0; w < slots.size(); ++w) {
    const auto key = std::tuple(slots[w], speed.empty() ? 1 : speed[w], price.empty() ? 1.0 : price[w]);
    kind.push_back(known.emplace(key, static_cast<int32_t>(known.size())).first->second);
  }
  return kind;
}

GroupedLayer GroupExpertsByRoutes(const GroupProblem& problem) {
  const int32_t experts = problem.layer->experts;
  if (problem.current && !problem.anew) {
    Packs start = *problem.current;
    FillSlots(MixLoad(*problem.layer), problem.slots, problem.max_moves, start);
    GroupSearch search(problem, start, Assign(start, experts));
    search.Run(.5);
    return search.Result();
  }
  GroupProblem free = problem;
  free.current.reset();
  const Packs start = PlaceCoactivation(*problem.layer, problem.slots, true);
  GroupSearch search(free, start, Assign(start, experts));
  search.Run(problem.current ? .4 : 1);
  if (!problem.current) return search.Result();
  Assignment found = search.best();
  const size_t workers = problem.slots.size();
  const std::vector<int32_t> place = StayingPlaces(ToPacks(found, workers), ToTable(*problem.current, experts),
                                                   AlikeWorkers(problem.slots, problem.speed, problem.price));
  for (Assignment::Expert& expert : found.experts) {
    for (int32_t& w : expert.workers) w = place[w];
    for (int32_t& w : expert.aim) w = place[w];
  }
  GroupProblem rest = problem;
  rest.max_moves = std::numeric_limits<int32_t>::max();
  GroupSearch back(rest, ToPacks(found, workers), found);
  back.Run(.1);
  return back.Result();
}

}  // namespace ballast
