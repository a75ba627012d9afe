// Gives a fuzz target's entry point every file of its corpus, one GoogleTest case a file.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

class Replay : public testing::Test {
 public:
  explicit Replay(std::string input) : input_(std::move(input)) {}
  // The target itself aborts when its property does not hold.
  void TestBody() override { LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input_.data()), input_.size()); }

 private:
  const std::string input_;
};

void Register(std::string name, const std::string& input) {
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  testing::RegisterTest("Corpus", name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                        [input]() -> Replay* { return new Replay(input); });
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER\n", argv[0]);
    return 2;
  }
  Register("EmptyInput", "");
  std::vector<std::filesystem::path> files;
  std::error_code error;  // no folder yet: the empty input alone
  for (const auto& entry : std::filesystem::directory_iterator(argv[1], error)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    std::ifstream in(file, std::ios::binary);
    Register(file.filename().string(), std::string(std::istreambuf_iterator<char>(in), {}));
  }
  return RUN_ALL_TESTS();
}
