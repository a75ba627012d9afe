// A fixture for tests of ballastctl's verbs: a folder of files, and command lines that are run in this process.
#ifndef BALLAST_CONTROLLER_CTL_VERB_TEST_H_
#define BALLAST_CONTROLLER_CTL_VERB_TEST_H_

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "controller/ctl/context.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace ballast {

// Useful for: what users see of a verb, that is files, output, errors and the exit status.
class VerbTest : public ::testing::Test {
 protected:
  // `add` registers the verbs.
  explicit VerbTest(void (*add)(CLI::App&, CtlContext&))
      : add_(add),
        folder_(::testing::TempDir() + ::testing::UnitTest::GetInstance()->current_test_info()->test_suite_name()) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  void Write(const std::string& name, const std::string& text) const { std::ofstream(Path(name)) << text; }
  std::string Read(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(Path(name)).rdbuf();
    return text.str();
  }
  bool Exists(const std::string& name) const { return std::filesystem::exists(Path(name)); }

  // Runs `line`, without the program's name, words between spaces; @NAME is a file of the folder. 0: done, 1: the verb
  // failed, 2: a wrong command line. What it printed is in out_ and err_.
  int Run(const std::string& line) {
    std::vector<std::string> words;
    std::istringstream in(line);
    for (std::string word; in >> word;) {
      const size_t at = word.find('@');
      words.push_back(at == std::string::npos ? word : word.substr(0, at) + Path(word.substr(at + 1)));
    }
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    out_.str("");
    err_.str("");
    CLI::App app;
    CtlContext context{.controller = controller_, .out = out_, .err = err_};
    AddGlobalOptions(app, context);
    add_(app, context);
    try {
      app.parse(words);
    } catch (const CLI::ParseError& e) {
      return app.exit(e, out_, err_) == 0 ? 0 : 2;
    }
    const absl::Status status = context.run();
    if (!status.ok()) err_ << status.message();
    return status.ok() ? 0 : 1;
  }

  // What `line` prints as JSON; a failure of the test where it fails.
  nlohmann::json Json(const std::string& line) {
    EXPECT_EQ(Run(line + " --output json"), 0) << err_.str();
    return nlohmann::json::parse(out_.str(), nullptr, false);
  }

  // Nobody listens there.
  std::string controller_ = "127.0.0.1:1";
  std::ostringstream out_;
  std::ostringstream err_;

 private:
  void (*const add_)(CLI::App&, CtlContext&);
  const std::string folder_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_VERB_TEST_H_
