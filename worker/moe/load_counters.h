// Expert load as the hot path counts it: tokens and gate mass by (task, phase, layer, expert).
#ifndef BALLAST_WORKER_MOE_LOAD_COUNTERS_H_
#define BALLAST_WORKER_MOE_LOAD_COUNTERS_H_

#include <array>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "proto/base/ids.h"
#include "proto/base/mutex.h"
#include "proto/placement/balancedness.h"
#include "proto/placement/placement.h"
#include "worker/moe/share_form.h"

namespace ballast {

enum class TokenPhase : uint8_t { kPrefill = 0, kDecode = 1 };
inline constexpr int kTokenPhases = 2;

// What a row counts as.
struct RowLabel {
  // From LoadCounters::InternTask.
  int32_t task = 0;
  TokenPhase phase = TokenPhase::kPrefill;
  // What the row chose is wanted: LoadCounters::TakeKeptRoutes.
  bool keep_routes = false;
  // It is not counted with its step, as it is not known yet as what: what it chose is kept like with keep_routes, for
  // LoadCounters::AddTokens. Where a step does not tell every layer's choices it counts as `task` after all.
  bool held_back = false;
};

// What one layer of a step chose: [rows][top_k] each.
struct RoutedLayer {
  int32_t layer = 0;
  std::span<const int32_t> experts;
  std::span<const float> weights;
};

// A step whose choices stay where they were made, on a GPU, and are counted there. LoadCounters calls it, one call at a
// time.
class RoutedElsewhere {
 public:
  virtual ~RoutedElsewhere() = default;
  // The last step counts: `cells` [rows] is task * kTokenPhases + phase, or below 0 for a row that does not.
  virtual void Count(std::span<const int32_t> cells) = 0;
  // Asks for the routes of `rows` of the step just counted, and for them: [rows.size()][layers][top_k], or empty where
  // they cannot be had; valid until the next Ask. The next Ask or Count comes after Routes.
  virtual void Ask(std::span<const int32_t> rows) = 0;
  virtual std::span<const int32_t> Routes() = 0;
  // The cells counted since the last call, which then begin from zero again: [layers][experts] tokens, and gate mass in
  // units of 2^-32. Valid until the next call.
  struct Counted {
    int32_t cell = 0;
    std::span<const uint64_t> tokens;
    std::span<const uint64_t> gate_mass;
  };
  virtual std::span<const Counted> Take() = 0;
};

struct LoadCount {
  ExpertId expert;
  // Index into LoadWindow::tasks.
  int32_t task = 0;
  TokenPhase phase = TokenPhase::kPrefill;
  // At least 1.
  int64_t tokens = 0;
  // Sum of those tokens' combine weights, but for tokens of AddTokens, whose weights are gone by then: a ratio of mass
  // to tokens has to leave tasks of classified requests aside.
  double gate_mass = 0;
  friend bool operator==(const LoadCount&, const LoadCount&) = default;
};

// Whole routes of some tokens of a task and phase, drawn uniformly from all that were counted.
struct RouteSample {
  // Index into LoadWindow::tasks.
  int32_t task = 0;
  TokenPhase phase = TokenPhase::kPrefill;
  int32_t tokens = 0;
  // [tokens][layers][top_k]
  std::vector<int32_t> experts;
  friend bool operator==(const RouteSample&, const RouteSample&) = default;
};

struct TaskCount {
  std::string task;
  // Tokens that entered the model.
  int64_t prefill_tokens = 0;
  int64_t decode_tokens = 0;
  // Of requests that came unlabelled and were taken for the task's.
  bool classified = false;
  friend bool operator==(const TaskCount&, const TaskCount&) = default;
};

// What the leader of a view knows of a step as a whole.
struct StepBalance {
  // Mean over max of routed tokens by worker, averaged over the layers that had some; below 0: not known.
  double balancedness = -1;
  // Prefill when any rank brought prefill rows.
  TokenPhase phase = TokenPhase::kPrefill;
  std::array<int, kShareForms> layers_by_form = {};
};

// Steps of one phase in a window. Only the leader of a view knows them; elsewhere all is 0.
struct BalanceCount {
  int64_t steps = 0;
  double balancedness_sum = 0;
  // Steps by balancedness: at most kStepBalancednessBounds[i], and in the last place those above all bounds.
  std::array<int64_t, kStepBalancednessBounds.size() + 1> buckets = {};
  std::array<int64_t, kShareForms> layers_by_form = {};
  friend bool operator==(const BalanceCount&, const BalanceCount&) = default;
};

// Everything counted between two Takes.
struct LoadWindow {
  // Every task ever interned, in the order of their indices.
  std::vector<TaskCount> tasks;
  // Sorted by (task, phase, layer, expert); what is absent is zero.
  std::vector<LoadCount> counts;
  // Sorted by (task, phase); none without tokens.
  std::vector<RouteSample> samples;
  // By phase.
  std::array<BalanceCount, kTokenPhases> balance;
  // Of the last step counted.
  Epoch epoch;
};

// Thread-safe. The step thread adds once a step, when the step is committed, so a step that is run again counts once.
class LoadCounters {
 public:
  // Tasks with an index of their own; further ones share the index of kOtherTasks. 64 labels, and the 32 profiles that
  // requests can be classified by.
  static constexpr int32_t kMaxTasks = 96;
  static constexpr std::string_view kOtherTasks = "_other";

  // Of at most `sampled_tokens` tokens of each task and phase between two Takes the whole routes are kept: enough to
  // know which experts are chosen together, at a cost that does not grow with the tokens. Which tokens these are
  // depends on their number and order alone. Steps that ran some of the layers only are not sampled.
  LoadCounters(int32_t num_layers, int32_t num_experts, int32_t top_k, int32_t sampled_tokens = 0);

  // The index of a request's label; the same label always has the same. Requests that were `classified` as of the task
  // are counted apart, under an index of their own.
  int32_t InternTask(std::string_view task, bool classified = false) BALLAST_EXCLUDES(mu_);
  // The label behind an index.
  std::string TaskName(int32_t index) const BALLAST_EXCLUDES(mu_);

  // One committed step: a label a row, and what every layer chose for those rows. Rows of which `failed` [rows, or
  // empty] is true are not counted. Does not allocate for tasks seen before.
  void AddStep(Epoch epoch, std::span<const RowLabel> rows, std::span<const uint8_t> failed,
               std::span<const RoutedLayer> layers, const StepBalance& balance) BALLAST_EXCLUDES(mu_);
  // The same of a step that ran all layers elsewhere. What `routed` has counted is asked for in Take, until Forget; one
  // `routed` at a time.
  void AddStep(Epoch epoch, std::span<const RowLabel> rows, std::span<const uint8_t> failed, RoutedElsewhere& routed,
               const StepBalance& balance) BALLAST_EXCLUDES(mu_);
  // Tokens that were held back, as of `task` (an index): `routes` [tokens][layers][top_k]. Their gate mass is not
  // known.
  void AddTokens(int32_t task, TokenPhase phase, std::span<const int32_t> routes) BALLAST_EXCLUDES(mu_);
  // Takes in what `routed` still has.
  void Forget(RoutedElsewhere& routed) BALLAST_EXCLUDES(mu_);

  // Of the last step: [rows with keep_routes or held_back][layers][top_k], row after row, in the router's order; once.
  // Empty where the step did not tell every layer's.
  std::vector<int32_t> TakeKeptRoutes() BALLAST_EXCLUDES(mu_);
  int32_t num_layers() const { return num_layers_; }
  int32_t top_k() const { return top_k_; }

  // What was counted since the last call, and counts from zero again.
  LoadWindow Take() BALLAST_EXCLUDES(mu_);

 private:
  struct Cell {
    int64_t tokens = 0;
    double gate_mass = 0;
  };
  struct Task {
    std::string name;
    bool classified = false;
    int64_t phase_tokens[kTokenPhases] = {};
    // [layer][expert], empty until there are counts.
    std::vector<Cell> cells[kTokenPhases];
    struct Sample {
      // Tokens that it was drawn from.
      int64_t seen = 0;
      // [sampled_tokens_][layer][top_k], empty until the first token.
      std::vector<int32_t> experts;
    } samples[kTokenPhases];
  };
  // A row whose routes are wanted, and where they go: kept, and a place in a sample (below 0: none).
  struct Wanted {
    int32_t row = 0;
    bool keep = false;
    Task::Sample* sample = nullptr;
    int64_t place = -1;
  };

  // Where the next token of the sample's population goes; below 0: nowhere.
  int64_t NextPlace(Task::Sample& sample) BALLAST_REQUIRES(mu_);
  // Everything of a step but what its layers chose; leaves cells_, and wanted_ where there are all layers' routes.
  void AddRows(Epoch epoch, std::span<const RowLabel> rows, std::span<const uint8_t> failed, bool all_layers,
               const StepBalance& balance) BALLAST_REQUIRES(mu_);
  // `routes` [wanted_][layers][top_k]; wanted_ is empty then.
  void KeepRoutes(std::span<const int32_t> routes) BALLAST_REQUIRES(mu_);
  // The routes asked for and not looked at yet.
  void KeepAsked() BALLAST_REQUIRES(mu_);
  std::vector<Cell>& CellsOf(int32_t cell) BALLAST_REQUIRES(mu_);
  void TakeElsewhere() BALLAST_REQUIRES(mu_);

  const int32_t num_layers_;
  const int32_t num_experts_;
  const int32_t top_k_;
  const int32_t sampled_tokens_;
  mutable Mutex mu_;
  std::minstd_rand random_ BALLAST_GUARDED_BY(mu_);
  absl::flat_hash_map<std::pair<std::string, bool>, int32_t> index_ BALLAST_GUARDED_BY(mu_);
  std::vector<Task> tasks_ BALLAST_GUARDED_BY(mu_);
  std::array<BalanceCount, kTokenPhases> balance_ BALLAST_GUARDED_BY(mu_);
  Epoch epoch_ BALLAST_GUARDED_BY(mu_);
  std::vector<int32_t> kept_routes_ BALLAST_GUARDED_BY(mu_);
  RoutedElsewhere* elsewhere_ BALLAST_GUARDED_BY(mu_) = nullptr;
  // Of the last step: by row, what it counts as, or -1.
  std::vector<int32_t> cells_ BALLAST_GUARDED_BY(mu_);
  // Of the last step, until their routes are there.
  std::vector<Wanted> wanted_ BALLAST_GUARDED_BY(mu_);
  // Scratch.
  std::vector<int32_t> wanted_rows_ BALLAST_GUARDED_BY(mu_);
  std::vector<int32_t> routes_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_LOAD_COUNTERS_H_
