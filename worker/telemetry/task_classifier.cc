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
  for (size_t t = 0; t < count; ++t) {
    for (size_t i = 0; i < size; ++i) {
      const double chosen = profiles.tasks(static_cast<int>(t)).tokens(static_cast<int>(i));
      table.log_chance_[t * size + i] =
          static_cast<float>(std::log((chosen + experts * mean[i]) / (sums[t * layers + i / experts] + experts)));
    }
  }
  for (size_t i = 0; i < size && count > 0; ++i) {
    table.log_chance_[count * size + i] = static_cast<float>(std::log(mean[i]));
  }
  return table;
}

Classification ProfileTable::Classify(std::span<const int32_t> routes, int32_t top_k, double min_confidence) const {
  const size_t of_token = static_cast<size_t>(layers_) * top_k;
  BALLAST_CHECK(!routes.empty() && routes.size() % of_token == 0) << routes.size() << " choices";
  if (empty()) return {};
  const size_t size = static_cast<size_t>(layers_) * experts_;
  std::vector<float> chosen(size);
  for (size_t i = 0; i < routes.size(); ++i) {
    ++chosen[i % of_token / top_k * experts_ + static_cast<size_t>(routes[i])];
  }
  const auto tokens = static_cast<double>(routes.size() / of_token);
  const double design_effect = 1 + (tokens - 1) * kTokenCorrelation;
  std::vector<double> likelihood;
  for (size_t t = 0; t <= tasks_.size(); ++t) {
    double sum = 0;
    for (size_t i = 0; i < size; ++i) sum += static_cast<double>(chosen[i]) * log_chance_[t * size + i];
    likelihood.push_back(sum / static_cast<double>(of_token) / design_effect);
  }
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
