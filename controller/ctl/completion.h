// Completion of ballastctl's command line in a shell. The scripts ask ballastctl itself at each key, so that what they
// offer is what that program takes. Pure.
#ifndef BALLAST_CONTROLLER_CTL_COMPLETION_H_
#define BALLAST_CONTROLLER_CTL_COMPLETION_H_

#include <span>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace ballast {

struct Completions {
  struct Word {
    std::string text;
    // One line; empty: none.
    std::string help;
    friend bool operator==(const Word&, const Word&) = default;
  };
  std::vector<Word> words;
  // Any file or folder.
  bool files = false;
};

// What may come in place of the last of `words`, the one that is being typed; the program's own name is not one of
// them. A lone "=" is taken as bash means it, which makes three words of --option=value.
Completions Complete(const CLI::App& app, std::span<const std::string> words);

// bash, zsh or fish.
enum class Shell { kBash, kZsh, kFish };
// As the shell's script reads them, a line each; a line "%files" alone for files.
std::string CompletionLines(const Completions& completions, Shell shell);
// To be sourced by the shell, or put where it looks for completions of `program`.
std::string CompletionScript(const std::string& program, Shell shell);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_COMPLETION_H_
