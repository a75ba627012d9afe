#include "controller/ctl/man_page.h"

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "controller/ctl/command_line.h"

namespace ballast {
namespace {

// Text in which no character and no line's start means anything to troff.
std::string Troff(const std::string& text) {
  std::string out = absl::StrReplaceAll(text, {{"\\", "\\e"}, {"-", "\\-"}, {"\"", "\\(dq"}});
  out = absl::StrReplaceAll(out, {{"\n.", "\n\\&."}, {"\n'", "\n\\&'"}});
  return absl::StrCat(out.starts_with(".") || out.starts_with("'") ? "\\&" : "", out);
}

// Paragraphs; lines that are set in are examples and tables, and stay as they are.
std::string Paragraphs(const std::string& text) {
  std::string out;
  bool set_in = false;
  for (const std::string_view line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
    const bool now = line.starts_with(' ');
    if (now != set_in) absl::StrAppend(&out, now ? ".RS 4\n.nf\n" : ".fi\n.RE\n.PP\n");
    set_in = now;
    absl::StrAppend(&out, line.empty() ? ".PP" : Troff(std::string(now ? line.substr(2) : line)), "\n");
  }
  if (set_in) out += ".fi\n.RE\n";
  return out;
}

// A list of what `options` are called, take and do.
std::string OptionsText(const std::vector<const CLI::Option*>& options) {
  std::string out;
  for (const CLI::Option* option : options) {
    std::vector<std::string> names;
    for (const std::string& name : option->get_lnames()) names.push_back(absl::StrCat("--", name));
    for (const std::string& name : option->get_snames()) names.push_back(absl::StrCat("-", name));
    if (option->get_positional()) names = {absl::AsciiStrToUpper(option->get_name(true))};
    absl::StrAppend(&out, ".TP\n\\fB", Troff(absl::StrJoin(names, ", ")), "\\fR");
    const std::string value = ValueName(*option);
    if (!value.empty()) absl::StrAppend(&out, " \\fI", Troff(value), "\\fR");
    absl::StrAppend(&out, "\n", Troff(option->get_description()), option->get_required() ? " (required)" : "", "\n");
    if (!option->get_default_str().empty()) absl::StrAppend(&out, "Default: ", Troff(option->get_default_str()), ".\n");
    if (!option->get_envname().empty()) {
      absl::StrAppend(&out, "Also from the environment variable ", Troff(option->get_envname()), ".\n");
    }
  }
  return out;
}

void AppendVerbs(const CLI::App& app, const std::string& path, std::string& out) {
  for (const CLI::App* verb : VerbsOf(app)) {
    const std::string name = absl::StrCat(path, verb->get_name());
    std::string usage = name;
    for (const CLI::Option* p : PositionalsOf(*verb)) {
      const std::string argument = absl::AsciiStrToUpper(p->get_name(true));
      absl::StrAppend(&usage, p->get_required() ? absl::StrCat(" ", argument) : absl::StrCat(" [", argument, "]"));
    }
    absl::StrAppend(&out, ".SS ", Troff(usage), "\n", Paragraphs(verb->get_description()),
                    OptionsText(PositionalsOf(*verb)));
    std::vector<const CLI::Option*> options = OptionsOf(*verb);
    // Every verb has it.
    std::erase_if(options, [](const CLI::Option* o) { return o->check_lname("help"); });
    out += OptionsText(options);
    if (!verb->get_footer().empty()) absl::StrAppend(&out, ".PP\n", Paragraphs(verb->get_footer()));
    AppendVerbs(*verb, absl::StrCat(name, " "), out);
  }
}

}  // namespace

std::string ManPage(const CLI::App& app, const std::string& version) {
  const std::string title = absl::StrCat(app.get_name(), " ", version);
  std::string verbs;
  AppendVerbs(app, "", verbs);
  return absl::StrCat(".TH ", absl::AsciiStrToUpper(app.get_name()), " 1 \"\" \"", title,
                      "\" \"User Commands\"\n.SH NAME\n", app.get_name(),
                      " \\- plan, watch and command where experts live\n.SH SYNOPSIS\n.B ", app.get_name(),
                      "\n\\fIVERB\\fR [\\fIOPTION\\fR]...\n.SH DESCRIPTION\n", Paragraphs(app.get_description()),
                      ".SH OPTIONS\nEvery verb takes these:\n", OptionsText(OptionsOf(app)), ".SH VERBS\n", verbs,
                      ".SH EXAMPLES\n", Paragraphs(app.get_footer()));
}

}  // namespace ballast
