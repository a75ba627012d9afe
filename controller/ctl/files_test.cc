#include "controller/ctl/files.h"

#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class WriteFileTest : public ::testing::Test {
 protected:
  WriteFileTest() : folder_(::testing::TempDir() + "files_test") {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  std::string Path(const std::string& name) const { return absl::StrCat(folder_, "/", name); }
  std::string Read(const std::string& name) const {
    std::ifstream in(Path(name), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  std::set<std::string> Names() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) names.insert(entry.path().filename());
    return names;
  }
  mode_t Mode(const std::string& name) const {
    struct stat status = {};
    EXPECT_EQ(stat(Path(name).c_str(), &status), 0);
    return status.st_mode & 07777;
  }

  const std::string folder_;
};

TEST_F(WriteFileTest, WritersAtOnceLeaveOneOrTheOther) {
  const std::string contents[] = {std::string(1 << 20, 'a'), std::string((1 << 20) + 5, 'b')};
  ASSERT_TRUE(WriteFile(Path("f"), contents[0]).ok());
  std::atomic<int> left = 2;
  std::vector<std::thread> writers;
  for (const std::string& content : contents) {
    writers.emplace_back([&] {
      for (int i = 0; i < 12; ++i) {
        const absl::Status status = WriteFile(Path("f"), content);
        EXPECT_TRUE(status.ok()) << status;
      }
      --left;
    });
  }
  while (left > 0) {
    const std::string found = Read("f");
    // Not EXPECT_EQ, which would print it.
    EXPECT_TRUE(found == contents[0] || found == contents[1]) << found.size();
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_THAT(Names(), ElementsAre("f"));
}

TEST_F(WriteFileTest, AReplacedFileLeavesItsMode) {
  const mode_t before = umask(027);
  ASSERT_TRUE(WriteFile(Path("f"), "1").ok());
  EXPECT_EQ(Mode("f"), 0640u);
  umask(before);
  ASSERT_TRUE(WriteFile(Path("f"), "2").ok());
  EXPECT_EQ(Mode("f"), 0640u);
  ASSERT_EQ(chmod(Path("f").c_str(), 0604), 0);
  ASSERT_TRUE(WriteFile(Path("f"), "3").ok());
  EXPECT_EQ(Mode("f"), 0604u);
  EXPECT_EQ(Read("f"), "3");
}

TEST_F(WriteFileTest, ErrorsLeaveNothingBehind) {
  const absl::Status none = WriteFile(Path("none/f"), "x");
  EXPECT_EQ(none.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(none.ToString(), HasSubstr("none/f: cannot be written: No such file or directory"));
  std::filesystem::create_directories(Path("folder/inside"));
  EXPECT_THAT(WriteFile(Path("folder"), "x").ToString(), HasSubstr("folder: cannot be written: Is a directory"));
  EXPECT_THAT(Names(), ElementsAre("folder"));
  // A name as long as names may be has room for the partial file's, too.
  const std::string longest(255, 'n');
  ASSERT_TRUE(WriteFile(Path(longest), "x").ok());
  EXPECT_THAT(WriteFile(Path(longest + "n"), "x").ToString(), HasSubstr("File name too long"));
  EXPECT_THAT(Names(), ElementsAre("folder", longest));
}

}  // namespace
}  // namespace ballast
