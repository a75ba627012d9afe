#include "worker/model/text_splitter.h"

#include <re2/re2.h>

#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_replace.h"
#include "proto/base/check.h"
#include "worker/model/utf8.h"

namespace ballast {
namespace {

struct KnownPattern {
  std::string_view pattern;
  // For RE2, which has no lookahead: \s+(?!\S) is left out, and Split does what it would do. {L}, {N} and {S} stand for
  // \p{L}, \p{N} and \s inside brackets.
  const char* re2;
  bool newlines_apart;
};
constexpr std::array<KnownPattern, 3> kPatterns = {{
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     R"('s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^{S}{L}{N}]+|[{S}]+)", false},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n{L}{N}]?[{L}]+|[{N}]| ?[^{S}{L}{N}]+[\r\n]*|[{S}]*[\r\n]+|[{S}]+)", true},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n{L}{N}]?[{L}]+|[{N}]{1,3}| ?[^{S}{L}{N}]+[\r\n]*|[{S}]*[\r\n]+|[{S}]+)",
     true},
}};

// The library's Oniguruma knows Unicode 16, Debian's RE2 Unicode 15: what has become a letter or a number since.
constexpr char kLetters[] =
    R"(\p{L}\x{1c89}-\x{1c8a}\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3}\x{10d4a}-\x{10d65}\x{10d6f}-\x{10d85})"
    R"(\x{10ec2}-\x{10ec4}\x{11380}-\x{11389}\x{1138b}\x{1138e}\x{11390}-\x{113b5}\x{113b7}\x{113d1}\x{113d3})"
    R"(\x{11bc0}-\x{11be0}\x{13460}-\x{143fa}\x{16100}-\x{1611d}\x{16d40}-\x{16d6c}\x{18cff}\x{1e5d0}-\x{1e5ed}\x{1e5f0})"
    R"(\x{2ebf0}-\x{2ee5d})";
constexpr char kNumbers[] =
    R"(\p{N}\x{10d40}-\x{10d49}\x{116d0}-\x{116e3}\x{11bf0}-\x{11bf9}\x{16130}-\x{16139}\x{16d70}-\x{16d79})"
    R"(\x{1ccf0}-\x{1ccf9}\x{1e5f1}-\x{1e5fa})";
// IsWhiteSpace.
constexpr char kSpaces[] =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// The last code point of a text that has one.
std::string_view LastChar(std::string_view text) {
  size_t start = text.size() - 1;
  while ((static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) --start;
  return text.substr(start);
}

}  // namespace

std::optional<TextSplitter> TextSplitter::ForPattern(std::string_view pattern) {
  for (const KnownPattern& known : kPatterns) {
    if (known.pattern != pattern) continue;
    auto compiled = std::make_shared<const re2::RE2>(
        absl::StrReplaceAll(known.re2, {{"{L}", kLetters}, {"{N}", kNumbers}, {"{S}", kSpaces}}));
    BALLAST_CHECK(compiled->ok()) << compiled->error();
    return TextSplitter(std::move(compiled), known.newlines_apart);
  }
  return std::nullopt;
}

TextSplitter TextSplitter::Gpt2() { return *ForPattern(kPatterns[0].pattern); }

void TextSplitter::Split(std::string_view text, absl::FunctionRef<void(std::string_view)> word) const {
  const re2::StringPiece all(text.data(), text.size());
  for (size_t at = 0; at < text.size();) {
    re2::StringPiece match;
    // Every character belongs to one of the alternatives.
    BALLAST_CHECK(pattern_->Match(all, at, text.size(), re2::RE2::ANCHOR_START, &match, 1) && !match.empty())
        << "at=" << at;
    size_t length = match.size();
    const std::string_view last = LastChar(text.substr(at, length));
    const bool spaces =
        IsWhiteSpace(DecodeUtf8(last).code_point) && !(newlines_apart_ && (last == "\n" || last == "\r"));
    // \s+(?!\S) leaves the last space of a run to the word that follows.
    if (spaces && at + length < text.size() && last.size() < length) length -= last.size();
    word(text.substr(at, length));
    at += length;
  }
}

}  // namespace ballast
