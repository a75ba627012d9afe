// What is left to do on the way to a placement, and what the wave that is being built does of it: slots, last replicas
// and undoing, without loads. What wave_builder.cc builds with.
#ifndef BALLAST_CONTROLLER_PLANNER_WAVE_CHANGES_H_
#define BALLAST_CONTROLLER_PLANNER_WAVE_CHANGES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "controller/planner/topology.h"
#include "controller/planner/waves.h"
#include "proto/placement/placement.h"

namespace ballast {

enum class ChangeState : uint8_t { kPending, kInWave, kDone };

struct Arrival {
  ExpertId expert;
  int32_t worker;
  bool lost;  // the expert has no replica before the wave
  ChangeState state = ChangeState::kPending;
};

struct Departure {
  ExpertId expert;
  int32_t worker;
  ChangeState state = ChangeState::kPending;
};

// A Change by indices of its arrivals and departures.
struct ChangeGroup {
  int32_t layer;
  absl::InlinedVector<int32_t, 2> arrivals;
  absl::InlinedVector<int32_t, 2> departures;
};

// Not bound to a thread.
class WaveChanges {
 public:
  // `topology` must outlive it.
  WaveChanges(const Placement& current, const Topology& topology, const WaveLimits& limits);

  // Return the index.
  int32_t AddArrival(const Arrival& arrival);
  int32_t AddDeparture(const Departure& departure);
  std::vector<Arrival>& arrivals() { return arrivals_; }
  const std::vector<Arrival>& arrivals() const { return arrivals_; }
  const std::vector<Departure>& departures() const { return departures_; }
  // Indices, by layer, in the order in which they are tried.
  std::vector<int32_t>& arrivals_of(int32_t layer) { return arrivals_of_[layer]; }
  const std::vector<int32_t>& arrivals_of(int32_t layer) const { return arrivals_of_[layer]; }
  const std::vector<int32_t>& departures_of(int32_t layer) const { return departures_of_[layer]; }
  int64_t left() const { return left_; }
  // Whether changes of the layer are left that are not in the wave.
  bool Pending(int32_t layer) const;

  void BeginWave();
  // Whether all of a group fits the wave, on workers that do not wait ([workers]).
  bool Fits(const ChangeGroup& group, const std::vector<bool>& worker_waits);
  void Take(int32_t arrival);
  void Leave(int32_t departure);
  // Whether it is still to be done, and its expert lives on without it.
  bool CanLeave(int32_t departure) const;
  // Brings an expert in, with the departures and further arrivals that it takes: a worker at its limit gives a replica
  // up, and if that is the expert's last, the expert must arrive elsewhere in the same wave. Such a chain ends at a
  // worker with room or a replica to spare, or closes into a cycle; a cycle needs one free slot on each of its workers.
  // Replicas of the arriving expert's own layer go first, so that few layers are under way at a time. Where that leads
  // nowhere every worker always has the same choice, so that some start on each cycle closes it. False, and nothing
  // done: there is no way.
  bool Bring(int32_t arrival);
  // The wave's changes: arrivals by index, departures by -1 - index.
  const std::vector<int32_t>& log() const { return log_; }
  void UndoTo(size_t mark);
  // What the wave does is done.
  void EndWave();

  // Slots of a worker in use after the wave, and arrivals that the wave may have there.
  int32_t used(int32_t worker) const { return used_[worker]; }
  int32_t room(int32_t worker) const { return room_[worker]; }

 private:
  size_t Index(ExpertId e) const { return static_cast<size_t>(e.layer) * experts_ + e.expert; }
  int32_t Limit(int32_t w) const {
    return topology_.workers[w].capacity.slots - topology_.workers[w].capacity.staging_slots;
  }
  bool Bring(int32_t arrival, bool layer_first);
  // Pending departures at `w` whose expert lives on without them, or does not: the first of `layer`, the first of any.
  // -1: none.
  bool IsPending(int32_t departure, bool spare) const {
    return departures_[departure].state == ChangeState::kPending &&
           (alive_[Index(departures_[departure].expert)] > 1) == spare;
  }
  int32_t DepartureOf(int32_t w, int32_t layer, bool spare) const;
  int32_t AnyDeparture(int32_t w, bool spare) const;
  // What gives way to an arrival of `layer` at `w`. -1: nothing can.
  int32_t ChooseDeparture(int32_t w, int32_t layer, bool layer_first) const;

  const Topology& topology_;
  const WaveLimits limits_;
  const int32_t experts_;
  std::vector<int32_t> used_;      // [workers]
  std::vector<int32_t> incoming_;  // [workers] arrivals of the wave
  std::vector<int32_t> room_;      // [workers]
  std::vector<int32_t> alive_;     // [layers][experts] replicas after the wave
  std::vector<Arrival> arrivals_;
  std::vector<Departure> departures_;
  int64_t left_ = 0;
  std::vector<std::vector<int32_t>> arrivals_of_;    // by layer
  std::vector<std::vector<int32_t>> departures_of_;  // by layer
  std::vector<std::vector<int32_t>> departures_at_;  // by worker
  std::vector<int32_t> log_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_WAVE_CHANGES_H_
