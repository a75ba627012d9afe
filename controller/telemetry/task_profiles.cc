#include "controller/telemetry/task_profiles.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/store/records.pb.h"
#include "controller/telemetry/load_window.h"
#include "proto/base/check.h"

namespace ballast {

TaskProfiles::TaskProfiles(std::string_view group, int32_t layers, int32_t experts, const Options& options)
    : prefix_(StorePrefix(group)),
      experts_(experts),
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
    of_task[t]->changed = true;
    added_ += task.prefill_tokens();
  }
  for (const v1::LoadCount& count : report.counts()) {
    if (count.phase() != v1::PHASE_PREFILL || of_task[count.task()] == nullptr) continue;
    of_task[count.task()]->chosen[static_cast<size_t>(count.layer()) * experts_ + count.expert()] += count.tokens();
  }
  for (auto& [name, profile] : profiles_) {
    while (profile.tokens > options_.max_tokens) {
      profile.tokens /= 2;
      for (int64_t& chosen : profile.chosen) chosen /= 2;
    }
  }
  if (added_ < wanted_) return;
  ++version_;
  added_ = 0;
  wanted_ = std::max<int64_t>(1, AllTokens() / 2);
}

int64_t TaskProfiles::AllTokens() const {
  int64_t tokens = 0;
  for (const auto& [name, profile] : profiles_) tokens += profile.tokens;
  return tokens;
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

std::string TaskProfiles::StorePrefix(std::string_view group) {
  return absl::StrCat("profile/", std::string(group), "/");
}

std::vector<StoreWrite> TaskProfiles::TakeWrites() {
  std::vector<StoreWrite> writes;
  if (std::exchange(stored_version_, version_) == version_) return writes;
  for (auto key = stored_.begin(); key != stored_.end();) {
    if (profiles_.contains(key->substr(prefix_.size()))) {
      ++key;
      continue;
    }
    writes.push_back({*key, std::nullopt});
    key = stored_.erase(key);
  }
  for (auto& [task, profile] : profiles_) {
    if (!std::exchange(profile.changed, false)) continue;
    store::TaskProfileRecord record;
    record.set_tokens(profile.tokens);
    record.mutable_chosen()->Assign(profile.chosen.begin(), profile.chosen.end());
    record.set_last_report(profile.last_report);
    writes.push_back({absl::StrCat(prefix_, task), record.SerializeAsString()});
    stored_.insert(writes.back().key);
  }
  return writes;
}

void TaskProfiles::Load(std::string_view key, std::string_view value) {
  BALLAST_CHECK(key.starts_with(prefix_)) << key;
  stored_.insert(std::string(key));
  store::TaskProfileRecord record;
  if (!record.ParseFromArray(value.data(), static_cast<int>(value.size())) || record.tokens() < 0 ||
      record.chosen_size() != static_cast<int>(size_) || static_cast<int>(profiles_.size()) >= options_.max_tasks) {
    return;
  }
  Profile& profile = profiles_[std::string(key.substr(prefix_.size()))];
  profile.tokens = record.tokens();
  profile.chosen.assign(record.chosen().begin(), record.chosen().end());
  profile.last_report = record.last_report();
  reports_ = std::max(reports_, record.last_report());
  version_ = stored_version_ = 1;
  wanted_ = std::max<int64_t>(1, AllTokens() / 2);
}

}  // namespace ballast
