#include "controller/group/membership.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace ballast {
namespace {

const char* DeathReason(const WorkerFacts& worker, absl::Time now) {
  if (!worker.alive) return nullptr;
  if (now >= worker.lease_deadline) return "its lease ran out";
  if (worker.connected) return nullptr;
  if (worker.accused) return "its session and a peer's connection to it are lost";
  return worker.leaving && (worker.drained || !worker.member) ? "it left" : nullptr;
}

// Who is to go, for a view that did not work.
std::vector<std::string> ToPutOut(const MembershipFacts& facts) {
  std::vector<std::string> failing;
  int32_t out = 0;
  for (const WorkerFacts& worker : facts.workers) {
    if (worker.member && worker.failed_views >= kMostFailedViews) {
      failing.push_back(worker.name);
    } else if (worker.kept_out) {
      ++out;
    }
  }
  if (2 * (static_cast<int32_t>(failing.size()) + out) >= facts.size) return {};
  return failing;
}

}  // namespace

MembershipStep DecideMembership(const MembershipFacts& facts, absl::Time now) {
  using Kind = MembershipStep::Kind;
  for (const WorkerFacts& worker : facts.workers) {
    if (const char* reason = DeathReason(worker, now); reason != nullptr) {
      return {Kind::kDeclareDead, {worker.name}, reason};
    }
  }

  const std::set<std::string> placed(facts.placed.begin(), facts.placed.end());
  if (!facts.formed || !facts.had_view) {
    std::vector<std::string> candidates;
    int placed_alive = 0;
    for (const WorkerFacts& worker : facts.workers) {
      if (worker.alive && worker.connected && !worker.leaving) candidates.push_back(worker.name);
      if (worker.alive && placed.contains(worker.name)) ++placed_alive;
    }
    const bool void_placement = facts.formed && placed_alive < static_cast<int>(placed.size());
    if ((!facts.formed || void_placement) && static_cast<int32_t>(candidates.size()) == facts.size) {
      return {Kind::kForm, candidates, absl::StrCat(facts.size, " workers have joined")};
    }
  }
  if (!facts.formed) return {};

  std::vector<std::string> members;
  std::vector<std::string> in;
  std::vector<std::string> out;
  for (const WorkerFacts& worker : facts.workers) {
    const bool stays = worker.alive && worker.member && !(worker.leaving && worker.drained);
    // Where nobody serves, there is nobody to be kept from serving.
    const bool joins = worker.alive && !worker.member && worker.connected && worker.loaded && !worker.leaving &&
                       !(worker.kept_out && facts.has_view) && placed.contains(worker.name);
    if (stays || joins) members.push_back(worker.name);
    if (joins) in.push_back(worker.name);
    if ((worker.member && !stays) || (worker.stale_member && !joins)) out.push_back(worker.name);
  }
  if (!facts.has_view) {
    const std::set<std::string> holders(facts.holders.begin(), facts.holders.end());
    const auto here = std::count_if(members.begin(), members.end(), [&](const auto& m) { return holders.contains(m); });
    if (here == std::ssize(holders) && !members.empty()) {
      return {Kind::kIssueView, members, "every worker has loaded its replicas"};
    }
    const bool loading = std::any_of(facts.workers.begin(), facts.workers.end(), [&](const WorkerFacts& worker) {
      return worker.alive && worker.connected && !worker.leaving && !worker.loaded && !worker.load_failed &&
             holders.contains(worker.name);
    });
    if (here == 0 || loading || now < facts.start_at) return {};
    return {Kind::kIssueView, members, "the workers that are gone have been waited for"};
  }
  if (!out.empty() || !in.empty()) {
    std::vector<std::string> parts;
    if (!out.empty()) parts.push_back(absl::StrCat("without ", absl::StrJoin(out, ", ")));
    if (!in.empty()) parts.push_back(absl::StrCat("with ", absl::StrJoin(in, ", ")));
    return {Kind::kIssueView, members, absl::StrJoin(parts, ", ")};
  }
  if (now < facts.reissue_at) return {};
  if (std::vector<std::string> failing = ToPutOut(facts); !failing.empty()) {
    return {Kind::kPutOut, std::move(failing), absl::StrCat(kMostFailedViews, " views in a row failed because of it")};
  }
  return {Kind::kIssueView, members, "the view before did not work"};
}

std::vector<bool> Blamed(const std::vector<MemberWord>& words) {
  const int size = static_cast<int>(words.size());
  std::vector<bool> blamed(size);
  for (int m = 0; m < size; ++m) blamed[m] = words[m].failed && words[m].lost.empty();
  const std::vector<bool> alone = blamed;
  const auto others = static_cast<int>(std::count(alone.begin(), alone.end(), false)) - 1;
  const auto most = [others](int count) { return count >= 2 && 2 * count > others; };
  for (int m = 0; m < size; ++m) {
    if (alone[m]) continue;
    int lost_by = 0;
    int lost = 0;
    for (int other = 0; other < size; ++other) {
      if (other == m || alone[other]) continue;
      lost_by += words[other].lost.contains(m) ? 1 : 0;
      lost += words[m].lost.contains(other) ? 1 : 0;
    }
    const bool silent = !words[m].installed && !words[m].failed;
    blamed[m] = most(lost_by) && (silent || most(lost));
  }
  if (2 * std::count(blamed.begin(), blamed.end(), true) >= size) blamed.assign(size, false);
  return blamed;
}

absl::StatusOr<Placement> ContiguousPlacement(int32_t layers, int32_t experts, const std::vector<std::string>& workers,
                                              const std::vector<SlotCapacity>& capacity) {
  Placement placement;
  placement.num_layers = layers;
  placement.num_experts = experts;
  placement.workers = workers;
  std::vector<int32_t> used(workers.size());
  for (int32_t l = 0; l < layers; ++l) {
    for (int32_t e = 0; e < experts; ++e) {
      const auto w = static_cast<int32_t>(static_cast<int64_t>(e) * static_cast<int64_t>(workers.size()) / experts);
      placement.replicas.push_back({{l, e}, w, used[w]++, 1});
    }
  }
  placement.Sort();
  for (size_t w = 0; w < workers.size(); ++w) {
    const int32_t room = capacity[w].slots - capacity[w].staging_slots;
    if (used[w] > room) {
      return absl::FailedPreconditionError(
          absl::StrCat("worker ", workers[w], " has ", capacity[w].slots, " slots, less ", capacity[w].staging_slots,
                       " for staging; a group of ", workers.size(), " needs ", used[w]));
    }
  }
  return placement;
}

int32_t ContiguousSlots(int32_t layers, int32_t experts, int32_t workers) {
  return layers * ((experts + workers - 1) / workers);
}

std::vector<std::string> Holders(const Placement& placement) {
  std::vector<bool> holds(placement.workers.size());
  for (const Replica& replica : placement.replicas) holds[replica.worker] = true;
  std::vector<std::string> holders;
  for (size_t w = 0; w < holds.size(); ++w) {
    if (holds[w]) holders.push_back(placement.workers[w]);
  }
  return holders;
}

std::vector<ExpertId> MissingExperts(const Placement& placement, const std::vector<std::string>& live) {
  const std::set<std::string> alive(live.begin(), live.end());
  std::vector<bool> worker_live;
  for (const std::string& worker : placement.workers) worker_live.push_back(alive.contains(worker));
  std::vector<bool> found(static_cast<size_t>(placement.num_layers) * placement.num_experts);
  for (const Replica& replica : placement.replicas) {
    if (!worker_live[replica.worker]) continue;
    found[static_cast<size_t>(replica.expert.layer) * placement.num_experts + replica.expert.expert] = true;
  }
  std::vector<ExpertId> missing;
  for (int32_t l = 0; l < placement.num_layers; ++l) {
    for (int32_t e = 0; e < placement.num_experts; ++e) {
      if (!found[static_cast<size_t>(l) * placement.num_experts + e]) missing.push_back({l, e});
    }
  }
  return missing;
}

}  // namespace ballast
