// Which task an unlabelled prompt is of, from what its tokens chose.
//
// The rule is multinomial naive Bayes (McCallum and Nigam, "A Comparison of Event Models for Naive Bayes Text
// Classification", AAAI-98 workshop), experts being the words: the task whose profile makes the prompt's choices most
// likely. Profiles are smoothed towards the mean of all tasks' (Dirichlet prior; Zhai and Lafferty, SIGIR 2001), so one
// that little is known of looks like the mean. That mean is a candidate, too, and stands for "none of them": where it
// is about as likely as the best task, as always with a single task, the prompt stays unlabelled.
//
// Choices of one token in different layers are far from independent, which plain naive Bayes would take for certainty.
// So a token counts as one observation, the mean over its choices in all layers, however many these are. Nor are tokens
// of one prompt independent of each other: n of them count as n / (1 + (n - 1) r) (Kish's design effect, "Survey
// Sampling", 1965), r being .02.
#ifndef BALLAST_WORKER_TELEMETRY_TASK_CLASSIFIER_H_
#define BALLAST_WORKER_TELEMETRY_TASK_CLASSIFIER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ballast/v1/worker_session.pb.h"
#include "proto/base/mutex.h"

namespace ballast {

struct Classification {
  // Empty: none is likely enough.
  std::string task;
  // Of the best task: its part of the likelihoods, the mean's among them; 0 to 1.
  double confidence = 0;
};

// Immutable.
class ProfileTable {
 public:
  // `profiles` [layers][experts] each.
  //   InvalidArgument names the task, what it has and what is wanted.
  static absl::StatusOr<ProfileTable> Create(const v1::TaskProfiles& profiles, int32_t layers, int32_t experts);

  bool empty() const { return tasks_.empty(); }
  // `routes` [tokens][layers][top_k], at least one token; experts in range. A task below `min_confidence` is left out.
  Classification Classify(std::span<const int32_t> routes, int32_t top_k, double min_confidence) const;

 private:
  int32_t layers_ = 0;
  int32_t experts_ = 0;
  std::vector<std::string> tasks_;
  // [layers][experts][tasks, then their mean]: a prompt reads the cells that it chose and no others.
  std::vector<float> log_chance_;
};

// The profiles in force, and what is told of them. Thread-safe.
class TaskClassifier {
 public:
  // Tokens of a prompt that are looked at, the first ones: steps are taken in whole until there are so many.
  static constexpr int kTokens = 256;

  // `classified` hears of every request that was looked at; it must not block.
  TaskClassifier(int32_t layers, int32_t experts, int32_t top_k, double min_confidence,
                 std::function<void(const Classification&)> classified);

  // From now on; errors, which change nothing, as ProfileTable::Create.
  absl::Status SetProfiles(const v1::TaskProfiles& profiles) BALLAST_EXCLUDES(mu_);
  // Whether there are any.
  bool ready() const BALLAST_EXCLUDES(mu_);
  // As ProfileTable::Classify.
  Classification Classify(std::span<const int32_t> routes) const BALLAST_EXCLUDES(mu_);

 private:
  const int32_t layers_;
  const int32_t experts_;
  const int32_t top_k_;
  const double min_confidence_;
  const std::function<void(const Classification&)> classified_;
  mutable Mutex mu_;
  // Never null.
  std::shared_ptr<const ProfileTable> table_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TELEMETRY_TASK_CLASSIFIER_H_
