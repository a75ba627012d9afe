// What `ballastctl top` shows and how it goes on: pure text, and a loop over a screen and a source of views.
#ifndef BALLAST_CONTROLLER_CTL_TOP_H_
#define BALLAST_CONTROLLER_CTL_TOP_H_

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/group_service.pb.h"
#include "ballast/v1/plan_service.pb.h"
#include "proto/base/clock.h"

namespace ballast {

// What a controller knew at one moment.
struct TopView {
  absl::Time at;
  std::vector<v1::Group> groups;
  // The group that is shown in full: one of `groups`, or empty where there is none. The rest is of it.
  std::string group;
  std::vector<v1::Worker> workers;
  v1::Placement placement;
  v1::GetLoadResponse load;
  // The one that waits or is rolled out.
  std::optional<v1::GetPlanResponse> plan;
};

// By what GPUs are sorted; all but names and ranks from the most.
enum class TopSort { kLoad, kRank, kRunning, kWaiting, kKvCache };

struct TopSize {
  int columns = 100;
  int lines = 60;
  friend bool operator==(const TopSize&, const TopSize&) = default;
};

// At most so many lines of so many columns, each ended: groups; then of the one its plan, GPUs, hottest experts, layers
// (least level first), tasks (most tokens first) and moves in flight. What has no room is counted.
std::string TopText(const TopView& view, TopSort sort, TopSize size);

// Where frames go and keys come from.
class TopScreen {
 public:
  virtual ~TopScreen() = default;
  virtual TopSize size() = 0;
  virtual void Draw(const std::string& frame) = 0;
  // The next key, waited for until `deadline`; nothing: it has come, or the size is not what size() said last, also
  // where it changed before this call.
  virtual std::optional<char> Key(absl::Time deadline) = 0;
};

// What there is of the group, or where that is empty of the first one.
using TopLook = std::function<absl::StatusOr<TopView>(const std::string& group)>;

// Draws `view`, a look at `group`, and then what it sees every `interval`, until a key ends it. An error of a look is
// shown above what was seen last.
void RunTop(const TopLook& look, std::string group, TopView view, absl::Duration interval, Clock& clock,
            TopScreen& screen);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_TOP_H_
