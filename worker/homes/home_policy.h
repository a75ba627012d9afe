// Which worker runs a request: a home of its task, unless the homes have much more to do than the others.
//
// Pure: what is known of the workers in, a worker out.
#ifndef BALLAST_WORKER_HOMES_HOME_POLICY_H_
#define BALLAST_WORKER_HOMES_HOME_POLICY_H_

#include <cstdint>
#include <span>

#include "absl/time/time.h"

namespace ballast {

// What a worker has to do, as far as it is known here.
struct WorkerLoad {
  // Requests that it runs and that wait there.
  int requests = 0;
  int waiting = 0;
  double kv_used_ratio = 0;
};

// Why a request runs where it does.
enum class RequestRoute {
  // Its task has no home, or it was handed over by another worker: it is run here.
  kNone,
  // This worker is its home, or a home that it is handed to.
  kHere,
  kHome,
  // Its homes are full: run here, or handed to a worker that has less to do.
  kSpilledHere,
  kSpilled,
  // This worker is to go: handed to another.
  kAway,
};

// When a worker counts as full, and when no longer: between the two it stays what it was, so that requests do not go to
// and fro. A step lasts as long as its fullest worker takes, so what counts is a worker's part of the group's requests.
struct SpillLimits {
  // Requests above `ratio` times the mean of the workers plus `slack`; back below the other two.
  double full_ratio = 1.5;
  double full_slack = 4;
  double free_ratio = 1.2;
  double free_slack = 2;
  // Part of the KV cache that is set aside.
  double full_kv_ratio = .95;
  double free_kv_ratio = .85;
  // How long ago the controller may have told a worker's load (its last heartbeat, however old) for clients to be sent
  // there: of those that are it is not heard when they end.
  absl::Duration redirect_news = absl::Seconds(10);
};

// Whether a worker is to be spared now. One where requests wait is full, however few there are: others have room.
// `mean_requests` is over all workers.
bool IsFull(const WorkerLoad& load, double mean_requests, bool was_full, const SpillLimits& limits);

// A home of the request's task.
struct HomeTurn {
  // Index into the workers.
  int worker = 0;
  // Its part of the task's requests, relative to the other homes'; at least 1.
  uint32_t weight = 1;
  // What turns have left it with; begins at 0 and stays within the sum of the weights.
  int64_t credit = 0;
};

struct HomeChoice {
  int worker = 0;
  // Every home is full, and this is none, or the least busy of all.
  bool spilled = false;
};

// Homes that are not full take turns by weight. Where all are full `self` runs the request, whose load alone is known
// for sure and to which others do not send theirs at the same moment; where it is full, too, the worker with the fewest
// requests of those that are not (of equals the first); where there is none the homes take turns after all. Without
// homes: `self`. `full` [workers] is not 0 where IsFull.
HomeChoice ChooseWorker(std::span<HomeTurn> homes, std::span<const WorkerLoad> loads, std::span<const uint8_t> full,
                        int self);

// For a worker that gives its requests away: the one with the fewest requests, of those that are not full, else of all;
// of equals the first. Those in `draining` [workers] and `self` do not count; -1: nobody is left.
int ChooseOther(std::span<const WorkerLoad> loads, std::span<const uint8_t> full, std::span<const uint8_t> draining,
                int self);

}  // namespace ballast

#endif  // BALLAST_WORKER_HOMES_HOME_POLICY_H_
