#include "controller/ctl/terminal.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>

#include "absl/strings/str_replace.h"

namespace ballast {
namespace {

// The alternate screen, and no cursor; and back.
constexpr char kEnter[] = "\033[?1049h\033[?25l";
constexpr char kLeave[] = "\033[?25h\033[?1049l";
// Wherever they are raised, the terminal is given back first.
constexpr int kDeadly[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM};

// What was before the Terminal, and its thread; for its signal handler, which gets no argument.
termios g_before;
struct sigaction g_actions[NSIG];
pthread_t g_thread;

// Calls only what a signal handler may.
void GiveBack() {
  // Nothing can be done about a terminal that is gone.
  [[maybe_unused]] const ssize_t written = write(STDOUT_FILENO, kLeave, sizeof(kLeave) - 1);
  tcsetattr(STDIN_FILENO, TCSANOW, &g_before);
}

void Die(int signal) {
  // gRPC has threads, and a signal may come to any: while the Terminal's stands here it writes no frame.
  if (pthread_equal(pthread_self(), g_thread) == 0) {
    pthread_kill(g_thread, signal);
    return;
  }
  GiveBack();
  // This ends the process as if nobody had caught it, when the handler returns.
  sigaction(signal, &g_actions[signal], nullptr);
  raise(signal);
}

// Keeps the action that there was. A signal that was ignored, as nohup has it, still is.
void Handle(int signal, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  sigaction(signal, nullptr, &g_actions[signal]);
  if (g_actions[signal].sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
}

}  // namespace

std::optional<TopSize> TerminalSize() {
  winsize size = {};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) return std::nullopt;
  TopSize found;
  // A serial line does not know its size.
  if (size.ws_col > 0) found.columns = size.ws_col;
  if (size.ws_row > 0) found.lines = size.ws_row;
  return found;
}

Terminal::Terminal(Clock& clock) : clock_(clock) {
  tcgetattr(STDIN_FILENO, &g_before);
  g_thread = pthread_self();
  for (const int signal : kDeadly) Handle(signal, Die);
  // So that a change of the size ends poll().
  Handle(SIGWINCH, [](int) {});
  termios raw = g_before;
  raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
  // Stopped, it would leave the shell with this screen.
  raw.c_cc[VSUSP] = _POSIX_VDISABLE;
  tcsetattr(STDIN_FILENO, TCSANOW, &raw);
  std::cout << kEnter << std::flush;
}

Terminal::~Terminal() {
  std::cout.flush();
  GiveBack();
  for (const int signal : kDeadly) sigaction(signal, &g_actions[signal], nullptr);
  sigaction(SIGWINCH, &g_actions[SIGWINCH], nullptr);
}

TopSize Terminal::size() {
  const TopSize whole = TerminalSize().value_or(TopSize());
  return size_ = {.columns = std::max(whole.columns - 1, 1), .lines = std::max(whole.lines - 1, 1)};
}

void Terminal::Draw(const std::string& frame) {
  // From the top; each line's rest and the lines below are cleared.
  std::cout << "\033[H" << absl::StrReplaceAll(frame, {{"\n", "\033[K\n"}}) << "\033[J" << std::flush;
}

std::optional<char> Terminal::Key(absl::Time deadline) {
  const TopSize drawn = size_;
  for (;;) {
    const absl::Duration left = deadline - clock_.Now();
    if (left <= absl::ZeroDuration() || size() != drawn) return std::nullopt;
    pollfd input = {.fd = keys_ ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0};
    // At most a second: a signal may come between the look at the size and this.
    const absl::Duration wait = std::min(left, absl::Seconds(1));
    if (poll(&input, 1, static_cast<int>(absl::ToInt64Milliseconds(wait)) + 1) <= 0) continue;
    char key = 0;
    if (read(STDIN_FILENO, &key, 1) == 1) return key;
    keys_ = false;
  }
}

}  // namespace ballast
