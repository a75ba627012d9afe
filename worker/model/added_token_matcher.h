#ifndef BALLAST_WORKER_MODEL_ADDED_TOKEN_MATCHER_H_
#define BALLAST_WORKER_MODEL_ADDED_TOKEN_MATCHER_H_

#include <bitset>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

namespace ballast {

// Finds added tokens in text: at each place the longest, from left to right. Thread-safe once all are added.
class AddedTokenMatcher {
 public:
  // A part of a text: a token, or the text between tokens.
  struct Part {
    size_t begin = 0;
    size_t end = 0;
    // Absent: text.
    std::optional<int32_t> id;
  };

  // InvalidArgument: `pattern` is empty or was added before. The flags take the white space before and after along.
  absl::Status Add(std::string_view pattern, int32_t id, bool lstrip, bool rstrip);

  // Parts in order; no text part is empty. Time is text times the longest pattern at worst.
  std::vector<Part> Split(std::string_view text) const;

 private:
  struct Token {
    int32_t id;
    bool lstrip;
    bool rstrip;
  };
  struct Match {
    size_t length;
    const Token* token;
  };

  std::optional<Match> LongestAt(std::string_view text, size_t at) const;

  // A trie of bytes: node 0 is the root; children by node << 8 | byte.
  absl::flat_hash_map<uint64_t, int32_t> children_;
  int32_t num_nodes_ = 1;
  absl::flat_hash_map<int32_t, Token> tokens_;
  std::bitset<256> first_bytes_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_ADDED_TOKEN_MATCHER_H_
