#include "controller/group/membership.h"

#include <algorithm>
#include <set>

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
    const bool joins = worker.alive && !worker.member && worker.connected && worker.loaded && !worker.leaving &&
                       placed.contains(worker.name);
    if (stays || joins) members.push_back(worker.name);
    if (joins) in.push_back(worker.name);
    if ((worker.member && !stays) || (worker.stale_member && !joins)) out.push_back(worker.name);
  }
  if (!facts.has_view) {
    const bool all = std::all_of(facts.holders.begin(), facts.holders.end(), [&](const std::string& holder) {
      return std::find(members.begin(), members.end(), holder) != members.end();
    });
    if (!all || members.empty()) return {};
    return {Kind::kIssueView, members, "every worker has loaded its replicas"};
  }
  if (!out.empty() || !in.empty()) {
    std::vector<std::string> parts;
    if (!out.empty()) parts.push_back(absl::StrCat("without ", absl::StrJoin(out, ", ")));
    if (!in.empty()) parts.push_back(absl::StrCat("with ", absl::StrJoin(in, ", ")));
    return {Kind::kIssueView, members, absl::StrJoin(parts, ", ")};
  }
  if (now >= facts.reissue_at) return {Kind::kIssueView, members, "the view before did not work"};
  return {};
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
