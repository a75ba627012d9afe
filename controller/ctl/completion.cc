#include "controller/ctl/completion.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "controller/ctl/command_line.h"

namespace ballast {
namespace {

constexpr char kFiles[] = "%files";

// The function `_ballastctl`; NAME is the program. What is typed left of the cursor is passed on as words.
constexpr char kBash[] = R"(# bash completion of NAME: source it, or put it into bash-completion's folder.
_NAME() {
  local lines IFS=$'\n'
  COMPREPLY=()
  lines=$(NAME completion bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2> /dev/null) || return
  if [[ $lines == %files ]]; then
    compopt -o default
  else
    COMPREPLY=($lines)
  fi
}
complete -F _NAME NAME
)";
constexpr char kZsh[] = R"(#compdef NAME
# zsh completion of NAME: put it into a folder of $fpath as _NAME, or source it after compinit.
_NAME() {
  local lines
  local -a candidates
  lines=$(NAME completion zsh -- "${(@)words[2,CURRENT-1]}" "$PREFIX" 2> /dev/null) || return
  if [[ $lines == %files ]]; then
    # --option=FILE is one word here.
    compset -P '--*='
    _files
  elif [[ -n $lines ]]; then
    candidates=("${(@f)lines}")
    _describe NAME candidates
  fi
}
if [[ $funcstack[1] == _NAME ]]; then
  _NAME "$@"
else
  compdef _NAME NAME
fi
)";
constexpr char kFish[] = R"(# fish completion of NAME: put it into ~/.config/fish/completions, or source it.
function __NAME_complete
  set -l words (commandline -opc)
  set -e words[1]
  set -l typed (commandline -ct)
  set -l lines (NAME completion fish -- $words "$typed" 2> /dev/null)
  if test "$lines" = '%files'
    # --option=FILE is one word here.
    set -l option (string match -r '^--[^=]*=' -- $typed)
    printf "$option%s\n" (__fish_complete_path (string replace -- "$option" '' $typed))
  else if set -q lines[1]
    printf '%s\n' $lines
  end
end
complete -c NAME -f -a '(__NAME_complete)'
)";

bool TakesMany(const CLI::Option& option) { return option.get_items_expected_max() > 1; }

// The option of `app` or of what is above it, by "--name", "--name=..." or "-n"; null: there is none.
const CLI::Option* FindOption(const CLI::App& app, const std::string& word) {
  const std::string name = word.substr(0, word.find('='));
  for (const CLI::App* at = &app; at != nullptr; at = at->get_parent()) {
    for (const CLI::Option* option : OptionsOf(*at)) {
      if (option->check_name(name)) return option;
    }
  }
  return nullptr;
}

const CLI::App* FindVerb(const CLI::App& app, const std::string& name) {
  const std::vector<const CLI::App*> verbs = VerbsOf(app);
  const auto found = std::find_if(verbs.begin(), verbs.end(), [&](const CLI::App* v) { return v->get_name() == name; });
  return found == verbs.end() ? nullptr : *found;
}

void OfferValue(const CLI::Option& option, const std::string& prefix, const std::string& typed, Completions& found) {
  const std::vector<std::string> values = ValuesOf(option);
  for (const std::string& value : values) {
    if (value.starts_with(typed)) found.words.push_back({prefix + value, ""});
  }
  const std::string type = option.get_type_name();
  found.files = values.empty() && (type.find("FILE") != std::string::npos || type.find("FOLDER") != std::string::npos);
}

void OfferOptions(const CLI::App& app, const std::string& typed, Completions& found) {
  std::set<std::string> offered;
  for (const CLI::App* at = &app; at != nullptr; at = at->get_parent()) {
    for (const CLI::Option* option : OptionsOf(*at)) {
      for (const std::string& name : option->get_lnames()) {
        const std::string text = absl::StrCat("--", name);
        if (text.starts_with(typed) && offered.insert(text).second) {
          found.words.push_back({text, FirstLine(option->get_description())});
        }
      }
    }
  }
}

// What the words in front of the cursor have come to.
struct Place {
  const CLI::App* verb;
  size_t positionals = 0;
  // Its value comes next.
  const CLI::Option* option = nullptr;
  bool options_ended = false;
};

void Advance(const std::string& word, Place& place) {
  if (place.options_ended) {
    ++place.positionals;
  } else if (place.option != nullptr && word == "=") {
    // Its value still comes next.
  } else if (word.size() > 1 && word[0] == '-' && (place.option == nullptr || TakesMany(*place.option))) {
    place.options_ended = word == "--";
    const CLI::Option* option = FindOption(*place.verb, word);
    const bool value = option != nullptr && option->get_items_expected_max() > 0 && word.find('=') == std::string::npos;
    place.option = value ? option : nullptr;
  } else if (place.option != nullptr) {
    if (!TakesMany(*place.option)) place.option = nullptr;
  } else if (const CLI::App* verb = FindVerb(*place.verb, word); verb != nullptr) {
    place.verb = verb;
    place.positionals = 0;
  } else {
    ++place.positionals;
  }
}

}  // namespace

Completions Complete(const CLI::App& app, std::span<const std::string> words) {
  Place place{&app};
  Completions found;
  if (words.empty()) return found;
  for (const std::string& word : words.first(words.size() - 1)) Advance(word, place);
  std::string typed = words.back();
  const bool option_typed = !place.options_ended && typed.starts_with("-");
  if (place.option != nullptr && !(option_typed && TakesMany(*place.option))) {
    if (typed == "=") typed.clear();
    OfferValue(*place.option, "", typed, found);
    return found;
  }
  if (option_typed) {
    const size_t equals = typed.find('=');
    if (equals == std::string::npos) {
      OfferOptions(*place.verb, typed, found);
    } else if (const CLI::Option* option = FindOption(*place.verb, typed); option != nullptr) {
      OfferValue(*option, typed.substr(0, equals + 1), typed.substr(equals + 1), found);
    }
    return found;
  }
  const std::vector<const CLI::App*> verbs = VerbsOf(*place.verb);
  const std::vector<const CLI::Option*> positionals = PositionalsOf(*place.verb);
  for (const CLI::App* verb : verbs) {
    if (verb->get_name().starts_with(typed)) {
      found.words.push_back({verb->get_name(), FirstLine(verb->get_description())});
    }
  }
  if (place.positionals < positionals.size()) {
    OfferValue(*positionals[place.positionals], "", typed, found);
  } else if (verbs.empty() && positionals.empty() && typed.empty()) {
    OfferOptions(*place.verb, typed, found);
  }
  return found;
}

std::string CompletionLines(const Completions& completions, Shell shell) {
  if (completions.files) return absl::StrCat(kFiles, "\n");
  std::string lines;
  for (const Completions::Word& word : completions.words) {
    switch (shell) {
      case Shell::kBash:
        absl::StrAppend(&lines, word.text, "\n");
        break;
      case Shell::kZsh:
        absl::StrAppend(&lines, absl::StrReplaceAll(word.text, {{":", "\\:"}}), word.help.empty() ? "" : ":", word.help,
                        "\n");
        break;
      case Shell::kFish:
        absl::StrAppend(&lines, word.text, word.help.empty() ? "" : "\t", word.help, "\n");
        break;
    }
  }
  return lines;
}

std::string CompletionScript(const std::string& program, Shell shell) {
  const char* script = shell == Shell::kBash ? kBash : shell == Shell::kZsh ? kZsh : kFish;
  return absl::StrReplaceAll(script, {{"NAME", program}});
}

}  // namespace ballast
