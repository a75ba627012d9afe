#include "worker/moe/row_homes.h"

namespace ballast {

void RowHomes::Install(std::span<const TaskHomes> homes) {
  by_name_.clear();
  known_.clear();
  if (tasks_ == nullptr) return;
  for (size_t i = 0; i < homes.size(); ++i) by_name_.emplace(homes[i].task, static_cast<int32_t>(i));
}

int32_t RowHomes::Of(int32_t task) {
  if (by_name_.empty()) return -1;
  const auto index = static_cast<size_t>(task);
  if (index >= known_.size()) known_.resize(index + 1);
  if (!known_[index].has_value()) known_[index] = Find(task);
  return *known_[index];
}

int32_t RowHomes::Find(int32_t task) const {
  const std::string name = tasks_->TaskName(task);
  auto found = by_name_.find(name);
  if (found == by_name_.end() && !name.empty()) found = by_name_.find(std::string(LoadCounters::kOtherTasks));
  return found == by_name_.end() ? -1 : found->second;
}

}  // namespace ballast
