// The input is a text for the two tokenizers of testdata.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "worker/model/mapped_file.h"
#include "worker/model/tokenizer.h"

namespace {

std::unique_ptr<ballast::Tokenizer> Parse(const char* path) {
  const auto file = ballast::MappedFile::Open(path);
  BALLAST_CHECK(file.ok()) << file.status();
  auto tokenizer = ballast::Tokenizer::Parse(file->text());
  BALLAST_CHECK(tokenizer.ok() && (*tokenizer)->handles_text()) << tokenizer.status();
  return *std::move(tokenizer);
}

bool HasSpecialToken(std::string_view text) {
  for (const char* token : {"<pad>", "<bos>", "<eos>", "<unk>", "<s>", "</s>"}) {
    if (text.find(token) != text.npos) return true;
  }
  return false;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto byte_level = Parse("testdata/olmoe-9m/tokenizer.json");
  static const auto metaspace = Parse("testdata/tokenizer/metaspace.json");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto ids = byte_level->Encode(text);
  BALLAST_CHECK(metaspace->Encode(text).ok() == ids.ok());
  if (!ids.ok() || HasSpecialToken(text)) return 0;
  BALLAST_CHECK(byte_level->Decode(*ids) == text);
  // U+2581 reads as a space, and the text's first space is the one that encoding adds.
  if (text.find("\xE2\x96\x81") == text.npos && !text.starts_with(' ')) {
    BALLAST_CHECK(metaspace->Decode(*metaspace->Encode(text)) == text);
  }
  return 0;
}
