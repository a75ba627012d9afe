#include "controller/ctl/terminal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <optional>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"

namespace ballast {
namespace {

// A terminal in the place of stdin and stdout.
class TerminalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    other_end_ = posix_openpt(O_RDWR | O_NOCTTY);
    ASSERT_TRUE(other_end_ >= 0 && grantpt(other_end_) == 0 && unlockpt(other_end_) == 0);
    const int end = open(ptsname(other_end_), O_RDWR | O_NOCTTY);
    ASSERT_GE(end, 0);
    Resize(80, 24);
    dup2(end, STDIN_FILENO);
    dup2(end, STDOUT_FILENO);
    close(end);
  }
  void TearDown() override {
    dup2(stdin_, STDIN_FILENO);
    dup2(stdout_, STDOUT_FILENO);
    for (const int fd : {stdin_, stdout_, other_end_}) close(fd);
  }
  void Resize(unsigned short columns, unsigned short lines) {
    const winsize size = {.ws_row = lines, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    ASSERT_EQ(ioctl(other_end_, TIOCSWINSZ, &size), 0);
  }
  void Type(char key) { ASSERT_EQ(write(other_end_, &key, 1), 1); }

  SimulatedClock clock_{absl::FromUnixSeconds(0)};

 private:
  const int stdin_ = dup(STDIN_FILENO);
  const int stdout_ = dup(STDOUT_FILENO);
  int other_end_ = -1;
};

TEST_F(TerminalTest, KeysAreGivenAsTheyAreStruck) {
  Terminal terminal(clock_);
  EXPECT_EQ(terminal.size(), (TopSize{.columns = 79, .lines = 23}));
  Type('g');
  Type('q');
  EXPECT_EQ(terminal.Key(absl::InfiniteFuture()), 'g');
  EXPECT_EQ(terminal.Key(absl::InfiniteFuture()), 'q');
  EXPECT_EQ(terminal.Key(clock_.Now()), std::nullopt);
}

// While a frame is made nothing waits for the signal that says so.
TEST_F(TerminalTest, ASizeThatChangedBeforeTheWaitEndsIt) {
  Terminal terminal(clock_);
  terminal.size();
  Resize(40, 24);
  Type('g');
  EXPECT_EQ(terminal.Key(absl::InfiniteFuture()), std::nullopt);
  EXPECT_EQ(terminal.Key(absl::InfiniteFuture()), 'g') << "the new size was given with the answer before";
}

}  // namespace
}  // namespace ballast
