// What prompts of each task choose, by the labels that clients give: what workers tell the task of unlabelled prompts
// from.
//
// Pure but for its own state, without a clock: a profile that has many tokens is halved, so that older ones count less
// and less, and one that no more is heard of stays as it is until another task needs its place.
//
// What is told is also what is stored: a profile's record, at most 3 bytes for each expert of each layer and two
// numbers more, is written once for a version (below), so at most max_tasks records for half as many tokens again as
// there were. What is added after the last version is lost with the process.
#ifndef BALLAST_CONTROLLER_TELEMETRY_TASK_PROFILES_H_
#define BALLAST_CONTROLLER_TELEMETRY_TASK_PROFILES_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "ballast/v1/worker_session.pb.h"
#include "controller/store/store.h"

namespace ballast {

class TaskProfiles {
 public:
  struct Options {
    // Profiles that are kept: of the tasks heard of last.
    int max_tasks = 32;
    // Tokens at which a profile is halved.
    int64_t max_tokens = 1 << 17;
    // Tokens in all before there is anything to tell. So many that the first reports where no profiles are kept yet,
    // of few tasks maybe, do not take the place of what workers know.
    int64_t min_tokens = 1 << 14;
    // A task with fewer is not told of.
    int64_t min_task_tokens = 500;
  };
  TaskProfiles(std::string_view group, int32_t layers, int32_t experts, const Options& options);

  // A report that LoadWindow::Add has taken. Counts prompts' tokens that clients labelled; neither unlabelled or pooled
  // tasks' nor such as were classified, or guesses would confirm themselves.
  void Add(const v1::LoadReport& report);

  // Grows whenever half as much as there was has been added, so that few versions are told of, the first ones soon.
  // 0: there is nothing to tell.
  uint64_t version() const { return version_; }
  // As of now.
  v1::TaskProfiles ToProto() const;

  // Brings the store up to the version; nothing when it is. To be applied with the marks of the reports added so far.
  std::vector<StoreWrite> TakeWrites();
  // Takes one stored pair of prefix StorePrefix(group), before the first Add. Pairs of another shape (another model) go
  // with the next writes.
  static std::string StorePrefix(std::string_view group);
  void Load(std::string_view key, std::string_view value);

 private:
  struct Profile {
    int64_t tokens = 0;
    // Of the last report that had some.
    uint64_t last_report = 0;
    // Since it was stored.
    bool changed = false;
    // [layers][experts]
    std::vector<int64_t> chosen;
  };
  Profile& ProfileOf(const std::string& task);
  int64_t AllTokens() const;

  const std::string prefix_;
  const size_t experts_;
  const size_t size_;
  const Options options_;
  std::map<std::string, Profile> profiles_;
  uint64_t reports_ = 0;
  uint64_t version_ = 0;
  // Tokens added since the version, and those that there have to be for the next one.
  int64_t added_ = 0;
  int64_t wanted_;
  // The version that is stored, and the keys that are.
  uint64_t stored_version_ = 0;
  std::set<std::string> stored_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_TELEMETRY_TASK_PROFILES_H_
