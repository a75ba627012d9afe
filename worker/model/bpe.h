#ifndef BALLAST_WORKER_MODEL_BPE_H_
#define BALLAST_WORKER_MODEL_BPE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace ballast {

struct BpeOptions {
  // Symbols are bytes, and the vocabulary writes byte b as GPT-2's printable character for it; else they are code
  // points.
  bool byte_level = false;
  // A code point without a token becomes the tokens <0x00> to <0xFF> of its bytes, where the vocabulary has them.
  bool byte_fallback = false;
  // What becomes of a symbol without a token, after byte_fallback; absent: it is dropped.
  std::optional<std::string> unk_token;
  // Several such symbols in a row become one unk_token.
  bool fuse_unk = false;
  // A word that is a token as it stands is not built by merges.
  bool ignore_merges = false;
};

// Byte-pair encoding of one word, token for token what Hugging Face's tokenizers gives: merge the pair of lowest rank,
// leftmost first, until none is left. O(n log n) in the word's length. Thread-safe: immutable.
class Bpe {
 public:
  // Working memory of Encode, to be used again.
  class Scratch {
    friend class Bpe;
    struct Symbol {
      int32_t id;  // -1: merged into its left neighbour
      int32_t prev;
      int32_t next;
    };
    struct Candidate {
      uint64_t order;  // rank, then position of the left symbol: the least is merged first
      int32_t merged;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;
  };

  // `vocab`: distinct tokens with distinct ids of at least 0. `merges` in order of rank.
  // InvalidArgument: a merge's part or result, or unk_token, is not in the vocabulary.
  static absl::StatusOr<Bpe> Create(const absl::flat_hash_map<std::string, int32_t>& vocab,
                                    const std::vector<std::pair<std::string, std::string>>& merges,
                                    const BpeOptions& options);

  // Appends the ids of `word`: UTF-8 of less than 2^31 bytes, not encoded by the byte alphabet.
  void Encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t merged;
  };

  Bpe() = default;
  void FindSymbols(std::string_view word, Scratch& scratch) const;
  void FindByteSymbols(std::string_view word, Scratch& scratch) const;
  void FindCharSymbols(std::string_view word, Scratch& scratch) const;
  void Propose(Scratch& scratch, int32_t left, int32_t right) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;

  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  int32_t unk_ = -1;
  // By byte, -1 without a token: of the byte alphabet, and of byte_fallback.
  std::array<int32_t, 256> byte_ids_;
  std::array<int32_t, 256> fallback_ids_;
  absl::flat_hash_map<int32_t, int32_t> char_ids_;
  // Only with ignore_merges. Keys are text, not the byte alphabet.
  absl::flat_hash_map<std::string, int32_t> words_;
  // By left id << 32 | right id.
  absl::flat_hash_map<uint64_t, Merge> merges_;
};

// The text that a byte-level token stands for; nullopt if it has a character outside of the byte alphabet.
std::optional<std::string> FromByteAlphabet(std::string_view token);

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_BPE_H_
