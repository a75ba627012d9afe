// What prompts of each task choose, by the labels that clients give: what workers tell the task of unlabelled prompts
// from.
//
// Pure but for its own state, without a clock: a profile that has many tokens is halved, so that older ones count less
// and less, and one that no more is heard of stays as it is until another task needs its place. Not stored: a
// controller that starts begins anew, and workers keep what they were told until then.
#ifndef BALLAST_CONTROLLER_TELEMETRY_TASK_PROFILES_H_
#define BALLAST_CONTROLLER_TELEMETRY_TASK_PROFILES_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ballast/v1/worker_session.pb.h"

namespace ballast {

class TaskProfiles {
 public:
  struct Options {
    // Profiles that are kept: of the tasks heard of last.
    int max_tasks = 32;
    // Tokens at which a profile is halved.
    int64_t max_tokens = 1 << 17;
    // Tokens in all before there is anything to tell. So many that the first reports after a start, of few tasks maybe,
    // do not take the place of what workers know.
    int64_t min_tokens = 1 << 14;
    // A task with fewer is not told of.
    int64_t min_task_tokens = 500;
  };
  TaskProfiles(int32_t layers, int32_t experts, const Options& options);

  // A report that LoadWindow::Add has taken. Counts prompts' tokens that clients labelled; neither unlabelled or pooled
  // tasks' nor such as were classified, or guesses would confirm themselves.
  void Add(const v1::LoadReport& report);

  // Grows whenever half as much as there was has been added, so that few versions are told of, the first ones soon.
  // 0: there is nothing to tell.
  uint64_t version() const { return version_; }
  // As of now.
  v1::TaskProfiles ToProto() const;

 private:
  struct Profile {
    int64_t tokens = 0;
    // Of the last report that had some.
    uint64_t last_report = 0;
    // [layers][experts]
    std::vector<int64_t> chosen;
  };
  Profile& ProfileOf(const std::string& task);

  const size_t experts_;
  const size_t size_;
  const Options options_;
  std::map<std::string, Profile> profiles_;
  uint64_t reports_ = 0;
  uint64_t version_ = 0;
  // Tokens added since the version, and those that there have to be for the next one.
  int64_t added_ = 0;
  int64_t wanted_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_TELEMETRY_TASK_PROFILES_H_
