#include "worker/telemetry/task_classifier.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// Between any two tokens of a prompt. Of .01, .02, .04 and .08 this made certainty differ least from truth on held-out
// prompts of two models (classifier_accuracy).
constexpr double kTokenCorrelation = .02;

}  // namespace

absl::StatusOr<ProfileTable> ProfileTable::Create(const v1::TaskProfiles& profiles, int32_t layers, int32_t experts) {
  const size_t size = static_cast<size_t>(layers) * experts;
  ProfileTable table;
  table.layers_ = layers;
  table.experts_ = experts;
  const auto count = static_cast<size_t>(profiles.tasks_size());
  table.log_chance_.resize((count + 1) * size);
  // Each layer's choices, and the mean over tasks of their parts, one choice of each expert being added to every task.
  std::vector<double> sums(count * layers);
  std::vector<double> mean(size);
  for (size_t t = 0; t < count; ++t) {
    const v1::TaskProfile& profile = profiles.tasks(static_cast<int>(t));
    if (static_cast<size_t>(profile.tokens_size()) != size) {
      return absl::InvalidArgumentError(absl::StrCat("task_profiles.tasks.tokens: ", profile.tokens_size(),
                                                     " of task '", profile.task(), "', not ", layers, " layers of ",
                                                     experts));
    }
    table.tasks_.push_back(profile.task());
    for (size_t i = 0; i < size; ++i) sums[t * layers + i / experts] += profile.tokens(static_cast<int>(i));
    for (size_t i = 0; i < size; ++i) {
      mean[i] += (profile.tokens(static_cast<int>(i)) + 1.0) / (sums[t * layers + i / experts] + experts) /
                 static_cast<double>(count);
    }
  }
  for (size_t i = 0; i < size && count > 0; ++i) {
    float* const cell = &table.log_chance_[i * (count + 1)];
    for (size_t t = 0; t < count; ++t) {
      const double chosen = profiles.tasks(static_cast<int>(t)).tokens(static_cast<int>(i));
      cell[t] = static_cast<float>(std::log((chosen + experts * mean[i]) / (sums[t * layers + i / experts] + experts)));
    }
    cell[count] = static_cast<float>(std::log(mean[i]));
  }
  return table;
}

Classification ProfileTable::Classify(std::span<const int32_t> routes, int32_t top_k, double min_confidence) const {
  const size_t of_token = static_cast<size_t>(layers_) * top_k;
  BALLAST_CHECK(!routes.empty() && routes.size() % of_token == 0) << routes.size() << " choices";
  if (empty()) return {};
  // How often each cell was chosen, and which were.
  std::vector<int32_t> chosen(static_cast<size_t>(layers_) * experts_);
  std::vector<int32_t> cells;
  cells.reserve(std::min(routes.size(), chosen.size()));
  size_t next = 0;
  while (next < routes.size()) {
    for (int32_t layer = 0; layer < layers_; ++layer) {
      for (int32_t k = 0; k < top_k; ++k) {
        const int32_t cell = layer * experts_ + routes[next++];
        if (chosen[cell]++ == 0) cells.push_back(cell);
      }
    }
  }
  const size_t count = tasks_.size() + 1;
  std::vector<double> likelihood(count);
  for (const int32_t cell : cells) {
    const float* const chances = &log_chance_[cell * count];
    for (size_t t = 0; t < count; ++t) likelihood[t] += static_cast<double>(chosen[cell]) * chances[t];
  }
  const auto tokens = static_cast<double>(routes.size() / of_token);
  const double design_effect = 1 + (tokens - 1) * kTokenCorrelation;
  for (double& l : likelihood) l /= static_cast<double>(of_token) * design_effect;
  const double most = *std::max_element(likelihood.begin(), likelihood.end());
  double all = 0;
  for (const double l : likelihood) all += std::exp(l - most);
  // The last one is the mean.
  const auto best = std::max_element(likelihood.begin(), likelihood.end() - 1);
  Classification out{.confidence = std::exp(*best - most) / all};
  if (out.confidence >= min_confidence) out.task = tasks_[best - likelihood.begin()];
  return out;
}

TaskClassifier::TaskClassifier(int32_t layers, int32_t experts, int32_t top_k, double min_confidence,
                               std::function<void(const Classification&)> classified)
    : layers_(layers),
      experts_(experts),
      top_k_(top_k),
      min_confidence_(min_confidence),
      classified_(std::move(classified)),
      table_(std::make_shared<const ProfileTable>()) {}

absl::Status TaskClassifier::SetProfiles(const v1::TaskProfiles& profiles) {
  BALLAST_ASSIGN_OR_RETURN(ProfileTable table, ProfileTable::Create(profiles, layers_, experts_));
  auto shared = std::make_shared<const ProfileTable>(std::move(table));
  MutexLock lock(mu_);
  table_ = std::move(shared);
  return absl::OkStatus();
}

bool TaskClassifier::ready() const {
  MutexLock lock(mu_);
  return !table_->empty();
}

Classification TaskClassifier::Classify(std::span<const int32_t> routes) const {
  std::shared_ptr<const ProfileTable> table;
  {
    MutexLock lock(mu_);
    table = table_;
  }
  Classification out = table->Classify(routes, top_k_, min_confidence_);
  classified_(out);
  return out;
}

}  // namespace ballast
