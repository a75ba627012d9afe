// completion, man: what shells and `man` want to know of ballastctl.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "controller/ctl/completion.h"
#include "controller/ctl/context.h"
#include "controller/ctl/man_page.h"
#include "proto/base/version.h"

namespace ballast {

void AddShellVerbs(CLI::App& app, CtlContext& context) {
  struct Options {
    std::string shell;
    std::vector<std::string> words;
  };
  auto o = std::make_shared<Options>();
  CLI::App* completion =
      app.add_subcommand("completion", "Print a script that completes ballastctl's verbs, options and values");
  completion->add_option("shell", o->shell, "The shell that is to complete")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  completion->add_option("words", o->words,
                         "Behind --: print what may come in place of the last of these words, as the script asks");
  completion->footer(
      "Examples:\n"
      "  source <(ballastctl completion bash)\n"
      "  ballastctl completion zsh > ~/.zfunc/_ballastctl\n"
      "  ballastctl completion fish > ~/.config/fish/completions/ballastctl.fish");
  completion->callback([&app, &context, o] {
    context.run = [&app, &context, o] {
      static const std::map<std::string, Shell> kShells = {
          {"bash", Shell::kBash}, {"zsh", Shell::kZsh}, {"fish", Shell::kFish}};
      const Shell shell = kShells.at(o->shell);
      context.out << (o->words.empty() ? CompletionScript(app.get_name(), shell)
                                       : CompletionLines(Complete(app, o->words), shell));
      return absl::OkStatus();
    };
  });

  CLI::App* man = app.add_subcommand("man", "Print ballastctl's manual page");
  man->footer("Example:\n  ballastctl man | man -l -");
  man->callback([&app, &context] {
    context.run = [&app, &context] {
      context.out << ManPage(app, kVersion);
      return absl::OkStatus();
    };
  });
}

}  // namespace ballast
