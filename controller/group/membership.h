// Who is in a group: pure rules from a snapshot of its workers to the next thing to do.
//
// Level-triggered: the caller performs a step, takes a new snapshot and asks again until there is nothing to do. So the
// same rules hold after a restart, with what the store remembers as the snapshot.
#ifndef BALLAST_CONTROLLER_GROUP_MEMBERSHIP_H_
#define BALLAST_CONTROLLER_GROUP_MEMBERSHIP_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/placement/placement.h"

namespace ballast {

struct WorkerFacts {
  std::string name;
  // Its newest incarnation has not been declared dead.
  bool alive = false;
  // Its session is open.
  bool connected = false;
  absl::Time lease_deadline;
  // A member of the view in force said that it lost this worker.
  bool accused = false;
  // It said that it stops; `drained`: its requests have ended, and what it holds, if anything, stays with it.
  bool leaving = false;
  bool drained = false;
  // It is in the view in force, with this incarnation; with an earlier one, that came back as a new process.
  bool member = false;
  bool stale_member = false;
  // It holds its replicas of the placement in force, or has said that it cannot.
  bool loaded = false;
  bool load_failed = false;
  // Views in a row that failed because of it (Blamed), the one in force last; 0: that one did not.
  int failed_views = 0;
  // It was put out a while ago.
  bool kept_out = false;
};

struct MembershipFacts {
  // Sorted by name.
  std::vector<WorkerFacts> workers;
  int32_t size = 0;
  // There is a placement, over `placed` workers, of which `holders` hold replicas.
  bool formed = false;
  std::vector<std::string> placed;
  std::vector<std::string> holders;
  // A view has ever been issued.
  bool had_view = false;
  // The view in force has members.
  bool has_view = false;
  // Set when some member could not be reached by another, or a committed wave does not come into force: the time at
  // which the view is issued again.
  absl::Time reissue_at = absl::InfiniteFuture();
  // Set when no view has members and some worker could be one: the time from which those that are gone are not waited
  // for.
  absl::Time start_at = absl::InfiniteFuture();
};

struct MembershipStep {
  enum class Kind {
    kNothing,
    // `workers` are dead: forget their sessions, refuse their incarnations.
    kDeclareDead,
    // The same, and what comes back under their names waits outside for a while.
    kPutOut,
    // Make the first placement over `workers`.
    kForm,
    // Issue a view of `workers`, maybe none.
    kIssueView,
  };
  Kind kind = Kind::kNothing;
  std::vector<std::string> workers;
  // For people.
  std::string reason;
};

inline constexpr int kMostFailedViews = 4;

// The rules:
//  1. A worker is dead when its lease has run out; or its session is lost and a peer has lost it too; or its session is
//     lost and it was leaving and is drained or in no view.
//  2. A group without a placement forms when `size` workers are connected. It forms anew while no view was ever issued
//     and one of the placed workers is gone.
//  3. Without a view: one is issued when every worker that holds replicas is loaded, or from start_at on when every one
//     that is there is. With one: whoever is dead, or leaving and drained, is taken out, and who is loaded, connected,
//     not leaving and not kept out is taken in.
//  4. A view that does not work is issued again at reissue_at. Members because of which kMostFailedViews in a row have
//     failed are put out instead, where they and those kept out are fewer than half of the group.
MembershipStep DecideMembership(const MembershipFacts& facts, absl::Time now);

// What a member has said of the view in force.
struct MemberWord {
  bool installed = false;
  // It could not install the view or had to leave it, because of `lost`; by itself, where that is empty.
  bool failed = false;
  std::set<int> lost;
};

// By rank, because of whom a view failed. Words are about symptoms: whoever leaves a view first is lost by all, and a
// word may be wrong. So a member is blamed for what it says of itself, that it failed without losing anybody; or where
// more than half of the others, two at least, have lost it and it has lost as many, or has neither installed the view
// nor said why. Who failed by itself counts neither as lost nor as a witness. Nobody is blamed where that were half of
// the members or more: then it cannot be told who is right.
std::vector<bool> Blamed(const std::vector<MemberWord>& words);

// Expert e of each layer on worker e * N / E, one replica, slots from 0. `workers` sorted.
//   FailedPrecondition names the worker with too few slots.
absl::StatusOr<Placement> ContiguousPlacement(int32_t layers, int32_t experts, const std::vector<std::string>& workers,
                                              const std::vector<SlotCapacity>& capacity);

// Slots that a worker of such a placement needs at most, without staging.
int32_t ContiguousSlots(int32_t layers, int32_t experts, int32_t workers);

// Workers that hold a replica of `placement`, in its order.
std::vector<std::string> Holders(const Placement& placement);

// Experts of `placement` without a replica on any of `live` workers, sorted.
std::vector<ExpertId> MissingExperts(const Placement& placement, const std::vector<std::string>& live);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_GROUP_MEMBERSHIP_H_
