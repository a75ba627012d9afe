#include "absl/strings/str_split.h"
#include "controller/ctl/completion.h"
#include "controller/ctl/man_page.h"
#include "controller/ctl/verb_test.h"
#include "gmock/gmock.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

void AddSome(CLI::App& app, CtlContext& context) {
  app.name("ballastctl");
  AddShellVerbs(app, context);
  CLI::App* get = app.add_subcommand("get", "List what's there");
  CLI::App* plans = get->add_subcommand("plans", "Plans: newest first\nMore of them.");
  plans->add_option("--limit", "How many, 5-9")->default_str("5")->envname("LIMIT")->expected(1);
  plans->add_option("--load", "Many")->type_name("FILE")->expected(1, 100);
  plans->add_flag("--brief")->description("A \"flag\"");
  plans->add_option("id", "A plan")->expected(1);
  plans->add_option("file", "A file")->type_name("FILE")->expected(1);
  plans->footer("Example:\n  ballastctl get plans\n  .not a request");
  get->add_subcommand("secret")->group("");
}

class ShellVerbsTest : public VerbTest {
 protected:
  ShellVerbsTest() : VerbTest(AddSome) { AddSome(app_, context_); }

  // What is offered for the words between single spaces; "%files" for files.
  std::vector<std::string> Offers(const std::string& line) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    const Completions found = Complete(app_, words);
    if (found.files) return {"%files"};
    std::vector<std::string> texts;
    for (const auto& word : found.words) texts.push_back(word.text);
    return texts;
  }

  CLI::App app_;
  CtlContext context_;
};

TEST_F(ShellVerbsTest, OffersWhatFits) {
  EXPECT_THAT(Offers(""), ElementsAre("completion", "man", "get"));
  EXPECT_THAT(Offers("ge"), ElementsAre("get"));
  EXPECT_THAT(Offers("get "), ElementsAre("plans")) << "nothing hidden";
  EXPECT_THAT(Offers("get plans --l"), ElementsAre("--limit", "--load"));
  EXPECT_THAT(Offers("get plans --brief"), ElementsAre("--brief"));
  EXPECT_THAT(Offers("--l"), IsEmpty()) << "not here";
  EXPECT_THAT(Offers("man "), ElementsAre("--help")) << "nothing else may come";
  EXPECT_THAT(Offers("man x"), IsEmpty());
}

TEST_F(ShellVerbsTest, OffersValues) {
  EXPECT_THAT(Offers("completion "), ElementsAre("bash", "zsh", "fish"));
  EXPECT_THAT(Offers("completion z"), ElementsAre("zsh"));
  EXPECT_THAT(Offers("completion zsh "), IsEmpty()) << "only the first word is the shell";
  EXPECT_THAT(Offers("get plans "), IsEmpty()) << "an id";
  EXPECT_THAT(Offers("get plans 7 "), ElementsAre("%files"));
  EXPECT_THAT(Offers("get plans 7 -- --"), ElementsAre("%files")) << "no option any more";
  EXPECT_THAT(Offers("get plans --load="), ElementsAre("%files"));
  EXPECT_THAT(Offers("get plans --load = "), ElementsAre("%files")) << "as bash has it";
  EXPECT_THAT(Offers("get plans --load ="), ElementsAre("%files"));
  EXPECT_THAT(Offers("get plans --load a b "), ElementsAre("%files")) << "it takes many";
  EXPECT_THAT(Offers("get plans --load a --bri"), ElementsAre("--brief"));
  EXPECT_THAT(Offers("get plans --load=a 7 "), ElementsAre("%files"));
  EXPECT_THAT(Offers("get plans --limit "), IsEmpty());
  // A value is no verb.
  EXPECT_THAT(Offers("get plans --limit man --brie"), ElementsAre("--brief"));
}

TEST_F(ShellVerbsTest, WritesLinesForEachShell) {
  const Completions found{.words = {{"a:b", "Why: so"}, {"c", ""}}};
  EXPECT_EQ(CompletionLines(found, Shell::kBash), "a:b\nc\n");
  EXPECT_EQ(CompletionLines(found, Shell::kZsh), "a\\:b:Why: so\nc\n");
  EXPECT_EQ(CompletionLines(found, Shell::kFish), "a:b\tWhy: so\nc\n");
  EXPECT_EQ(CompletionLines({.files = true}, Shell::kFish), "%files\n");
}

TEST_F(ShellVerbsTest, TheVerbAnswersTheScripts) {
  ASSERT_EQ(Run("completion bash -- get pl"), 0) << err_.str();
  EXPECT_EQ(out_.str(), "plans\n");
  ASSERT_EQ(Run("completion fish -- get plans --brie"), 0) << err_.str();
  EXPECT_EQ(out_.str(), "--brief\tA \"flag\"\n");
  ASSERT_EQ(Run("completion zsh"), 0) << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("#compdef ballastctl\n"));
  EXPECT_EQ(Run("completion csh"), 2);
}

TEST_F(ShellVerbsTest, OptionsOfEveryVerbAreOffered) {
  ASSERT_EQ(Run("completion bash -- get plans --brief --cont"), 0) << err_.str();
  EXPECT_EQ(out_.str(), "--controller\n");
  ASSERT_EQ(Run("completion bash -- --output get --output=y"), 0) << err_.str();
  EXPECT_EQ(out_.str(), "--output=yaml\n");
  ASSERT_EQ(Run("completion bash -- get --output"), 0) << err_.str();
  EXPECT_EQ(out_.str(), "--output\n");
}

TEST_F(ShellVerbsTest, TheManualPageHasEveryVerbAndOption) {
  ASSERT_EQ(Run("man"), 0);
  const std::string page = out_.str();
  EXPECT_THAT(page, HasSubstr(".TH BALLASTCTL 1"));
  EXPECT_THAT(page, HasSubstr(".SS get plans [ID] [FILE]\nPlans: newest first\n"));
  EXPECT_THAT(page, HasSubstr("\\fB\\-\\-limit\\fR"));
  EXPECT_THAT(page, HasSubstr("How many, 5\\-9\nDefault: 5.\nAlso from the environment variable LIMIT.\n"));
  EXPECT_THAT(page, HasSubstr("\\fB\\-\\-output, \\-o\\fR \\fI{table,json,yaml}\\fR"));
  EXPECT_THAT(page, HasSubstr("A \\(dqflag\\(dq\n"));
  EXPECT_THAT(page, AllOf(HasSubstr("\nballastctl get plans\n\\&.not a request\n"), Not(HasSubstr("\n.not"))));
  EXPECT_THAT(page, Not(HasSubstr("secret")));
}

}  // namespace
}  // namespace ballast
