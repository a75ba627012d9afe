#include "controller/ctl/progress.h"

#include <sstream>
#include <streambuf>
#include <string>

#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(ProgressText, Table) {
  const struct {
    int64_t done, total;
    absl::Duration elapsed;
    int columns;
    const char* text;
  } kCases[] = {
      {0, 0, absl::Seconds(7), 60, "work  7 s"},
      {5, 0, absl::Seconds(187), 60, "work  3 min 07 s"},
      {0, 0, absl::Seconds(7500), 60, "work  2 h 05 min"},
      {0, 200, absl::Seconds(3), 40, "work [                      ]   0 %  3 s"},
      {1, 200, absl::Seconds(3), 40, "work [                      ]   0 %  3 s"},
      {50, 200, absl::Seconds(10), 60, "work [######                  ]  25 %  10 s, about 30 s left"},
      {100, 200, absl::Seconds(10), 41, "work [##   ]  50 %  10 s, about 10 s left"},
      {100, 200, absl::Seconds(10), 39, "work  50 %  10 s, about 10 s left"},
      {200, 200, absl::Seconds(61), 60, "work [###################################] 100 %  1 min 01 s"},
      {300, 200, absl::Seconds(5), 20, "work 100 %  5 s"},
      {50, 200, absl::Seconds(10), 9, "work  25 "},
      {50, 200, absl::Seconds(10), 0, ""},
  };
  for (const auto& c : kCases) {
    const std::string text = ProgressText("work", c.done, c.total, c.elapsed, c.columns);
    EXPECT_EQ(text, c.text) << c.done << " of " << c.total << " in " << c.columns;
    EXPECT_LE(text.size(), static_cast<size_t>(c.columns));
  }
}

// Keeps what is written, from any thread.
class SharedText final : public std::streambuf {
 public:
  // Returns once all that was written is `text`.
  void Await(const std::string& text) {
    MutexLock lock(mu_);
    while (text_ != text) changed_.Wait(mu_);
  }
  std::string text() {
    MutexLock lock(mu_);
    return text_;
  }

 private:
  int overflow(int c) override {
    const char one = static_cast<char>(c);
    xsputn(&one, 1);
    return c;
  }
  std::streamsize xsputn(const char* text, std::streamsize size) override {
    MutexLock lock(mu_);
    text_.append(text, static_cast<size_t>(size));
    changed_.NotifyAll();
    return size;
  }

  Mutex mu_;
  CondVar changed_;
  std::string text_ BALLAST_GUARDED_BY(mu_);
};

TEST(Progress, IsDrawnOverItselfAndTakenAway) {
  SimulatedClock clock;
  SharedText text;
  std::ostream err(&text);
  std::ostringstream out;
  const std::string drawn = "\rwork [###   ]  50 %  1 s, about 1 s left\033[K", cleared = "\r\033[K";
  {
    Progress progress({.out = &err, .columns = 40}, clock, "work", 10);
    clock.AwaitWaiters(1);
    progress.Set(5);
    clock.Advance(absl::Milliseconds(499));
    EXPECT_EQ(text.text(), "") << "not for work that is done at once";
    clock.Advance(absl::Milliseconds(501));
    text.Await(drawn);
    progress.Print(out, "a line\n");
    EXPECT_EQ(text.text(), drawn + cleared);
    progress.Print(out, "and one\n");
    EXPECT_EQ(text.text(), drawn + cleared) << "it is not there";
    clock.Advance(absl::Milliseconds(100));
    text.Await(drawn + cleared + drawn);
  }
  EXPECT_EQ(text.text(), drawn + cleared + drawn + cleared);
  EXPECT_EQ(out.str(), "a line\nand one\n");
}

TEST(Progress, IsNothingWhereThereIsNoTerminal) {
  SimulatedClock clock;
  std::ostringstream out, err;
  CtlContext context{.out = out, .err = err};
  EXPECT_EQ(ProgressLineOf(context).out, nullptr) << "a stream that is not the terminal";
  {
    Progress progress(ProgressLineOf(context), clock, "work", 10);
    progress.Set(3);
    clock.Advance(absl::Hours(1));
    progress.Print(out, "a line\n");
  }
  EXPECT_EQ(err.str(), "");
  EXPECT_EQ(out.str(), "a line\n");
}

}  // namespace
}  // namespace ballast
