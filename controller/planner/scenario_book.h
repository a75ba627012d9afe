// Which loads a placement has to serve well: those of now, and those that were and will come again.
#ifndef BALLAST_CONTROLLER_PLANNER_SCENARIO_BOOK_H_
#define BALLAST_CONTROLLER_PLANNER_SCENARIO_BOOK_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "controller/planner/bursts.h"
#include "controller/planner/load.h"

namespace ballast {

// Remembers loads by name (a phase, a task), so that phases that take turns lead to one placement for all of them
// instead of one after the other.
//
// Each name has its load of now, in which old tokens fade, and the loads that it has had before and that differ enough.
// Pure but for its own state, deterministic. Not thread-safe.
class ScenarioBook {
 public:
  struct Options {
    // Tokens of a layer that the load of now remembers: what comes beyond scales the old ones down.
    double memory_tokens = 32e6;
    // Earlier loads that are kept, over all names.
    int32_t kept = 6;
    // The part of the tokens that must have gone to other experts, mean over layers and beyond what sampling explains,
    // for a load to be another one.
    double distinct = 0.1;
  };
  explicit ScenarioBook(const Options& options) : options_(options) {}

  // Adds tokens counted under `name`; all calls give the same shape.
  void Add(const std::string& name, const LoadMatrix& tokens);

  // What a single step of those of `name` had, step after step: how bursty they are is measured by it (bursts.h). It is
  // not added to the load.
  void AddStep(const std::string& name, const LoadMatrix& step) { bursts_[name].Add(step); }

  // The loads of now, by name, as "decode", then those kept, oldest first, as "decode@3". A kept load that is like the
  // one of now is left out. Names are stable as long as the load is kept.
  std::vector<Scenario> Scenarios() const;

  // For a store: what is remembered, bounded by the names and options.kept.
  struct Remembered {
    std::string name;
    // Of an earlier load; 0: the one of now.
    int64_t number = 0;
    // Absent: it is remembered no more.
    std::optional<LoadMatrix> load;
  };
  // What has changed since the last call.
  std::vector<Remembered> TakeChanges();
  // Into a book without loads: all that one remembered, in any order.
  void Restore(std::vector<Remembered> remembered);

 private:
  struct Kept {
    std::string name;
    int64_t number = 0;
    LoadMatrix load;
  };
  void Keep(const std::string& name, const LoadMatrix& load);

  const Options options_;
  std::map<std::string, LoadMatrix> now_;
  // By name; not stored, but measured anew.
  std::map<std::string, BurstMeter> bursts_;
  std::vector<Kept> kept_;
  int64_t last_number_ = 0;
  // Since the last TakeChanges, by name and number; of what is gone, too.
  std::set<std::pair<std::string, int64_t>> changed_;
};

// The part of the tokens that goes to other experts in `b` than in `a`, mean over the layers that have tokens in both:
// half the sum of the differences of the experts' parts, 0 to 1, less what sampling alone is expected to show.
double LoadDistance(const LoadMatrix& a, const LoadMatrix& b);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_SCENARIO_BOOK_H_
