// The terminal that this process runs on, as a full screen with keys.
#ifndef BALLAST_CONTROLLER_CTL_TERMINAL_H_
#define BALLAST_CONTROLLER_CTL_TERMINAL_H_

#include <optional>
#include <string>

#include "absl/time/time.h"
#include "controller/ctl/top.h"
#include "proto/base/clock.h"

namespace ballast {

// What the terminal on stdout says of its size; nothing where stdout is none.
std::optional<TopSize> TerminalSize();

// On stdout and stdin, which must be terminals. Shows the alternate screen while it lives and gives each key as it is
// struck; after it, also when a signal ends the process, everything is as it was. At most one; one thread.
class Terminal final : public TopScreen {
 public:
  explicit Terminal(Clock& clock);
  ~Terminal() override;
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  // Without the last line, which the cursor stands in, and the last column: behind it some terminals clear it with the
  // line's rest.
  TopSize size() override;
  void Draw(const std::string& frame) override;
  std::optional<char> Key(absl::Time deadline) override;

 private:
  Clock& clock_;
  // What size() said last.
  TopSize size_;
  // stdin has not ended.
  bool keys_ = true;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_TERMINAL_H_
