#include "worker/model/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "worker/model/added_token_matcher.h"
#include "worker/model/mapped_file.h"
#include "worker/model/nfc.h"
#include "worker/model/tokenizer_spec.h"
#include "worker/model/utf8.h"

namespace ballast {
namespace {

constexpr size_t kMaxFileBytes = 64 << 20;
constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

std::string Replace(std::string_view text, const ReplaceNormalizer& replace) {
  return absl::StrReplaceAll(absl::string_view(text.data(), text.size()), {{replace.pattern, replace.content}});
}

std::string Normalize(const std::vector<Normalizer>& normalizers, std::string_view text) {
  std::string current(text);
  for (const Normalizer& normalizer : normalizers) {
    if (const auto* prepend = std::get_if<PrependNormalizer>(&normalizer)) {
      if (!current.empty()) current.insert(0, prepend->prefix);
    } else if (const auto* replace = std::get_if<ReplaceNormalizer>(&normalizer)) {
      current = Replace(current, *replace);
    } else {
      current = ToNfc(current);
    }
  }
  return current;
}

// <0x41> as its byte.
std::optional<char> FallbackByte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return std::nullopt;
    value = value * 16 + digit;
  }
  return static_cast<char>(value);
}

std::string BytesOf(const DecoderSpec& decoder, const std::string& token) {
  if (decoder.byte_level) return FromByteAlphabet(token).value_or(token);
  std::string text = decoder.replace.has_value() ? Replace(token, *decoder.replace) : token;
  if (decoder.byte_fallback) {
    if (const std::optional<char> byte = FallbackByte(text); byte.has_value()) return std::string(1, *byte);
  }
  return text;
}

}  // namespace

// A spec made fast.
class TokenizerRules {
 public:
  static absl::StatusOr<std::unique_ptr<const TokenizerRules>> Create(TokenizerSpec spec) {
    BALLAST_ASSIGN_OR_RETURN(Bpe bpe, Bpe::Create(spec.vocab, spec.merges, spec.bpe));
    std::unique_ptr<TokenizerRules> rules(new TokenizerRules(std::move(bpe)));
    for (const AddedToken& token : spec.added_tokens) {
      AddedTokenMatcher& matcher = token.normalized ? rules->normalized_tokens_ : rules->raw_tokens_;
      const std::string pattern = token.normalized ? Normalize(spec.normalizers, token.content) : token.content;
      BALLAST_RETURN_IF_ERROR(matcher.Add(pattern, token.id, token.lstrip, token.rstrip));
    }
    rules->MakeTokenBytes(spec);
    rules->normalizers_ = std::move(spec.normalizers);
    rules->pre_tokenizer_ = std::move(spec.pre_tokenizer);
    rules->strip_ = spec.decoder.strip;
    rules->prefix_ = std::move(spec.prefix);
    rules->suffix_ = std::move(spec.suffix);
    return rules;
  }

  std::vector<int32_t> Encode(std::string_view text, bool add_special_tokens) const {
    Encoding encoding;
    if (add_special_tokens) encoding.ids = prefix_;
    for (const AddedTokenMatcher::Part& part : raw_tokens_.Split(text)) {
      if (part.id.has_value()) {
        encoding.ids.push_back(*part.id);
        continue;
      }
      const std::string normalized = Normalize(normalizers_, text.substr(part.begin, part.end - part.begin));
      for (const AddedTokenMatcher::Part& inner : normalized_tokens_.Split(normalized)) {
        if (inner.id.has_value()) {
          encoding.ids.push_back(*inner.id);
        } else {
          const bool at_start = part.begin == 0 && inner.begin == 0;
          EncodePiece(std::string_view(normalized).substr(inner.begin, inner.end - inner.begin), 0, at_start, encoding);
        }
      }
    }
    if (add_special_tokens) encoding.ids.insert(encoding.ids.end(), suffix_.begin(), suffix_.end());
    return std::move(encoding.ids);
  }

  int32_t vocab_size() const { return static_cast<int32_t>(token_end_.size()) - 1; }
  DecoderSpec::Strip strip() const { return strip_; }

  std::string_view TokenBytes(int32_t id) const {
    if (id < 0 || id >= vocab_size()) return {};
    return std::string_view(token_bytes_).substr(token_end_[id], token_end_[id + 1] - token_end_[id]);
  }

 private:
  struct Encoding {
    std::vector<int32_t> ids;
    Bpe::Scratch scratch;
  };

  explicit TokenizerRules(Bpe bpe) : bpe_(std::move(bpe)) {}

  void MakeTokenBytes(const TokenizerSpec& spec) {
    std::vector<std::string> bytes;
    const auto set = [&](int32_t id, std::string text) {
      if (static_cast<size_t>(id) >= bytes.size()) bytes.resize(id + 1);
      bytes[id] = std::move(text);
    };
    for (const auto& [token, id] : spec.vocab) set(id, BytesOf(spec.decoder, token));
    for (const AddedToken& token : spec.added_tokens) {
      set(token.id, token.special ? "" : BytesOf(spec.decoder, token.content));
    }
    token_end_ = {0};
    for (const std::string& text : bytes) {
      token_bytes_ += text;
      token_end_.push_back(token_bytes_.size());
    }
  }

  // Splits from number `step` on.
  void EncodePiece(std::string_view piece, size_t step, bool at_start, Encoding& encoding) const {
    if (step == pre_tokenizer_.splits.size()) {
      EncodeWords(piece, at_start, encoding);
      return;
    }
    const char* begin = piece.data();
    pre_tokenizer_.splits[step].Split(
        piece, [&](std::string_view part) { EncodePiece(part, step + 1, at_start && part.data() == begin, encoding); });
  }

  void EncodeWords(std::string_view piece, bool at_start, Encoding& encoding) const {
    const auto encode = [&](std::string_view word) { bpe_.Encode(word, encoding.scratch, encoding.ids); };
    if (const auto* byte_level = std::get_if<ByteLevelSpec>(&pre_tokenizer_.last)) {
      std::string prefixed;
      if (byte_level->add_prefix_space && !piece.starts_with(' ')) {
        prefixed = absl::StrCat(" ", std::string(piece));
        piece = prefixed;
      }
      if (byte_level->split) {
        gpt2_.Split(piece, encode);
      } else {
        encode(piece);
      }
    } else if (const auto* metaspace = std::get_if<MetaspaceSpec>(&pre_tokenizer_.last)) {
      EncodeMetaspace(piece, at_start, *metaspace, encode);
    } else {
      encode(piece);
    }
  }

  static void EncodeMetaspace(std::string_view piece, bool at_start, const MetaspaceSpec& metaspace,
                              absl::FunctionRef<void(std::string_view)> encode) {
    const std::string& mark = metaspace.replacement;
    std::string text = Replace(piece, {.pattern = " ", .content = mark});
    const bool prepend = metaspace.prepend == MetaspaceSpec::Prepend::kAlways ||
                         (metaspace.prepend == MetaspaceSpec::Prepend::kFirst && at_start);
    if (prepend && !text.starts_with(mark)) text.insert(0, mark);
    const std::string_view all = text;
    for (size_t begin = 0; begin < all.size();) {
      // Each mark starts a word.
      const size_t end = metaspace.split ? std::min(all.find(mark, begin + 1), all.size()) : all.size();
      encode(all.substr(begin, end - begin));
      begin = end;
    }
  }

  const Bpe bpe_;
  AddedTokenMatcher raw_tokens_;
  AddedTokenMatcher normalized_tokens_;
  std::vector<Normalizer> normalizers_;
  PreTokenizerSpec pre_tokenizer_;
  const TextSplitter gpt2_ = TextSplitter::Gpt2();
  DecoderSpec::Strip strip_ = DecoderSpec::Strip::kNothing;
  std::vector<int32_t> prefix_;
  std::vector<int32_t> suffix_;
  // Token id's bytes are token_bytes_[token_end_[id] .. token_end_[id + 1]).
  std::string token_bytes_;
  std::vector<size_t> token_end_;
};

Tokenizer::Tokenizer(std::string why_ids_only) : why_ids_only_(std::move(why_ids_only)) {}
Tokenizer::Tokenizer(std::unique_ptr<const TokenizerRules> rules) : rules_(std::move(rules)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& dir) {
  const std::string path = absl::StrCat(dir, "/tokenizer.json");
  const auto file = MappedFile::Open(path, kMaxFileBytes);
  if (absl::IsNotFound(file.status())) {
    return std::unique_ptr<Tokenizer>(new Tokenizer(absl::StrCat(path, " is not there")));
  }
  if (!file.ok()) return file.status();
  auto tokenizer = Parse(file->text());
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(), absl::StrCat(path, ": ", tokenizer.status().message()));
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view json) {
  auto spec = ParseTokenizerSpec(json);
  if (absl::IsUnimplemented(spec.status())) {
    return std::unique_ptr<Tokenizer>(new Tokenizer(std::string(spec.status().message())));
  }
  if (!spec.ok()) return spec.status();
  BALLAST_ASSIGN_OR_RETURN(auto rules, TokenizerRules::Create(*std::move(spec)));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(rules)));
}

int32_t Tokenizer::vocab_size() const { return rules_ == nullptr ? 0 : rules_->vocab_size(); }

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  if (rules_ == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("this model takes token ids only: ", why_ids_only_));
  }
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat("text has ", text.size(), " bytes, the limit is ", kMaxTextBytes));
  }
  if (const auto malformed = FindMalformedUtf8(text); malformed.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8 at byte ", *malformed));
  }
  return rules_->Encode(text, add_special_tokens);
}

std::string Tokenizer::Decode(std::span<const int32_t> ids) const {
  StreamDecoder decoder(*this, /*at_start=*/true);
  std::string text;
  for (const int32_t id : ids) text += decoder.Push(id);
  return text + decoder.Finish();
}

std::string StreamDecoder::Push(int32_t id) {
  if (tokenizer_.rules_ == nullptr) return "";
  const std::string_view bytes = tokenizer_.rules_->TokenBytes(id);
  if (bytes.empty()) return "";
  const size_t start = pending_.size();
  pending_ += bytes;
  if (at_start_) {
    switch (tokenizer_.rules_->strip()) {
      case DecoderSpec::Strip::kNothing:
        break;
      case DecoderSpec::Strip::kOneSpace:
        if (pending_.front() == ' ') pending_.erase(0, 1);
        break;
      case DecoderSpec::Strip::kSpacesOfFirstToken:
        pending_.erase(std::remove(pending_.begin() + start, pending_.end(), ' '), pending_.end());
        break;
    }
    at_start_ = false;
  }
  std::string text;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Char next = DecodeUtf8(rest);
    if (next.kind == Utf8Char::Kind::kCut) break;
    text += next.kind == Utf8Char::Kind::kWhole ? rest.substr(0, next.length) : kReplacementCharacter;
    rest.remove_prefix(next.length);
  }
  pending_ = std::string(rest);
  return text;
}

std::string StreamDecoder::Finish() {
  if (pending_.empty()) return "";
  pending_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace ballast
