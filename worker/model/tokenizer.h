// Text to token ids and back, by a Hugging Face tokenizer.json.
#ifndef BALLAST_WORKER_MODEL_TOKENIZER_H_
#define BALLAST_WORKER_MODEL_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ballast {

class TokenizerRules;

// Byte-level BPE (GPT-2's, Qwen2's or Llama-3's way of cutting words) and metaspace BPE with byte fallback (Llama 2,
// Mixtral), with added tokens, the normalizers NFC, Prepend and Replace, and a template around the text. For these,
// Encode gives what Hugging Face's tokenizers 0.23 gives. For any other tokenizer the object works with token ids only.
//
// Thread-safe: immutable.
//
//   BALLAST_ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::Load("testdata/olmoe-9m"));
//   if (!tokenizer->handles_text()) LOG << tokenizer->why_ids_only();
//   BALLAST_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer->Encode("Hello"));
class Tokenizer {
 public:
  // The longest text that Encode takes.
  static constexpr size_t kMaxTextBytes = 16 << 20;

  // Reads dir/tokenizer.json. Without that file, or with features that Ballast does not know, the tokenizer handles ids
  // only. InvalidArgument names file, field, value and what is wanted: the file is broken.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& dir);
  // The same from the file's text.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view json);

  ~Tokenizer();

  bool handles_text() const { return rules_ != nullptr; }
  // The feature that keeps this tokenizer from handling text; empty if none does.
  const std::string& why_ids_only() const { return why_ids_only_; }
  // One more than the largest id that stands for text; 0 if it handles ids only. A model's vocabulary may be larger.
  int32_t vocab_size() const;

  // The ids of `text`, with what the tokenizer puts before and after a text (a <bos>, say) unless `add_special_tokens`
  // is false. Text that spells a special token becomes that token. Takes O(n log n). FailedPrecondition: handles ids
  // only. InvalidArgument: `text` is longer than kMaxTextBytes, or not UTF-8.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special_tokens = true) const;

  // The text of `ids` from the start of a text, without special tokens. Ids that stand for nothing give nothing. Bytes
  // that do not form UTF-8 give U+FFFD. A tokenizer that handles ids only gives "".
  std::string Decode(std::span<const int32_t> ids) const;

 private:
  friend class StreamDecoder;

  explicit Tokenizer(std::string why_ids_only);
  explicit Tokenizer(std::unique_ptr<const TokenizerRules> rules);

  // Null if it handles ids only.
  const std::unique_ptr<const TokenizerRules> rules_;
  const std::string why_ids_only_;
};

// Decodes ids one at a time into pieces of whole UTF-8 sequences; the pieces together are what Decode gives.
// Not thread-safe; the tokenizer must outlive it.
class StreamDecoder {
 public:
  // `at_start`: the ids start a text. False for ids that go on after a prompt, whose first word keeps its space.
  StreamDecoder(const Tokenizer& tokenizer, bool at_start) : tokenizer_(tokenizer), at_start_(at_start) {}

  // The text that `id` completes, maybe none.
  std::string Push(int32_t id);
  // After the last id: U+FFFD if the last sequence is incomplete, else "".
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  // Nothing has been decoded yet.
  bool at_start_;
  // The start of a sequence; at most 3 bytes.
  std::string pending_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_TOKENIZER_H_
