#include "worker/model/added_token_matcher.h"

#include "absl/strings/str_cat.h"
#include "proto/base/json.h"
#include "worker/model/utf8.h"

namespace ballast {
namespace {

// Where the white space before `end` starts, not before `begin`.
size_t SpaceBefore(std::string_view text, size_t begin, size_t end) {
  while (end > begin) {
    size_t start = end - 1;
    while (start > begin && (static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) --start;
    if (!IsWhiteSpace(DecodeUtf8(text.substr(start)).code_point)) break;
    end = start;
  }
  return end;
}

size_t SpaceAfter(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Utf8Char next = DecodeUtf8(text.substr(at));
    if (!IsWhiteSpace(next.code_point)) break;
    at += next.length;
  }
  return at;
}

}  // namespace

absl::Status AddedTokenMatcher::Add(std::string_view pattern, int32_t id, bool lstrip, bool rstrip) {
  if (pattern.empty()) return absl::InvalidArgumentError("an added token is empty");
  int32_t node = 0;
  for (const char c : pattern) {
    const auto [child, added] =
        children_.try_emplace(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(c), num_nodes_);
    if (added) ++num_nodes_;
    node = child->second;
  }
  if (!tokens_.try_emplace(node, Token{id, lstrip, rstrip}).second) {
    return absl::InvalidArgumentError(absl::StrCat("two added tokens are matched as ", Quote(pattern)));
  }
  first_bytes_.set(static_cast<uint8_t>(pattern.front()));
  return absl::OkStatus();
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::LongestAt(std::string_view text, size_t at) const {
  if (!first_bytes_.test(static_cast<uint8_t>(text[at]))) return std::nullopt;
  std::optional<Match> longest;
  int32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto child = children_.find(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(text[i]));
    if (child == children_.end()) break;
    node = child->second;
    if (const auto token = tokens_.find(node); token != tokens_.end()) longest = {i + 1 - at, &token->second};
  }
  return longest;
}

std::vector<AddedTokenMatcher::Part> AddedTokenMatcher::Split(std::string_view text) const {
  std::vector<Part> parts;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const std::optional<Match> match = LongestAt(text, at);
    if (!match.has_value()) {
      ++at;
      continue;
    }
    const size_t begin = match->token->lstrip ? SpaceBefore(text, done, at) : at;
    at += match->length;
    const size_t end = match->token->rstrip ? SpaceAfter(text, at) : at;
    if (begin > done) parts.push_back({done, begin, std::nullopt});
    parts.push_back({begin, end, match->token->id});
    done = at = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), std::nullopt});
  return parts;
}

}  // namespace ballast
