#include "controller/telemetry/task_profiles.h"

#include <algorithm>

#include "controller/telemetry/load_window.h"

namespace ballast {

TaskProfiles::TaskProfiles(int32_t layers, int32_t experts, const Options& options)
    : experts_(experts),
      size_(static_cast<size_t>(layers) * experts),
      options_(options),
      wanted_(std::max<int64_t>(1, options.min_tokens)) {}

TaskProfiles::Profile& TaskProfiles::ProfileOf(const std::string& task) {
  if (!profiles_.contains(task) && static_cast<int>(profiles_.size()) >= options_.max_tasks) {
    profiles_.erase(std::min_element(profiles_.begin(), profiles_.end(), [](const auto& a, const auto& b) {
      return a.second.last_report < b.second.last_report;
    }));
  }
  Profile& profile = profiles_[task];
  profile.chosen.resize(size_);
  profile.last_report = reports_;
  return profile;
}

void TaskProfiles::Add(const v1::LoadReport& report) {
  ++reports_;
  std::vector<Profile*> of_task(report.task_tokens_size());
  int tasks = 0;
  for (int t = 0; t < report.task_tokens_size(); ++t) {
    const v1::TaskTokens& task = report.task_tokens(t);
    if (task.task().empty() || task.task() == kPooledTask || task.classified() || task.prefill_tokens() == 0) continue;
    // Of more tasks than are kept the first ones: making room must not take away what is being added to.
    if (++tasks > options_.max_tasks) break;
    of_task[t] = &ProfileOf(task.task());
    of_task[t]->tokens += task.prefill_tokens();
    added_ += task.prefill_tokens();
  }
  for (const v1::LoadCount& count : report.counts()) {
    if (count.phase() != v1::PHASE_PREFILL || of_task[count.task()] == nullptr) continue;
    of_task[count.task()]->chosen[static_cast<size_t>(count.layer()) * experts_ + count.expert()] += count.tokens();
  }
  int64_t tokens = 0;
  for (auto& [name, profile] : profiles_) {
    while (profile.tokens > options_.max_tokens) {
      profile.tokens /= 2;
      for (int64_t& chosen : profile.chosen) chosen /= 2;
    }
    tokens += profile.tokens;
  }
  if (added_ < wanted_) return;
  ++version_;
  added_ = 0;
  wanted_ = std::max<int64_t>(1, tokens / 2);
}

v1::TaskProfiles TaskProfiles::ToProto() const {
  v1::TaskProfiles out;
  for (const auto& [name, profile] : profiles_) {
    if (profile.tokens < options_.min_task_tokens) continue;
    v1::TaskProfile& task = *out.add_tasks();
    task.set_task(name);
    for (const int64_t chosen : profile.chosen) task.add_tokens(static_cast<uint32_t>(chosen));
  }
  return out;
}

}  // namespace ballast
