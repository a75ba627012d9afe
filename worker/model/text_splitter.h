#ifndef BALLAST_WORKER_MODEL_TEXT_SPLITTER_H_
#define BALLAST_WORKER_MODEL_TEXT_SPLITTER_H_

#include <memory>
#include <optional>
#include <string_view>

#include "absl/functional/function_ref.h"

namespace re2 {
class RE2;
}

namespace ballast {

// Cuts text into words by one of the regular expressions that byte-level tokenizers use: GPT-2's, Qwen2's, Llama-3's.
// Runs in linear time. Thread-safe: immutable.
class TextSplitter {
 public:
  // By the expression as tokenizer.json writes it (Oniguruma's syntax); nullopt if it is none of those known.
  static std::optional<TextSplitter> ForPattern(std::string_view pattern);
  static TextSplitter Gpt2();

  // Calls `word` with the parts of `text`, which together are `text`, in order. `text` must be UTF-8.
  void Split(std::string_view text, absl::FunctionRef<void(std::string_view)> word) const;

 private:
  TextSplitter(std::shared_ptr<const re2::RE2> pattern, bool newlines_apart)
      : pattern_(std::move(pattern)), newlines_apart_(newlines_apart) {}

  std::shared_ptr<const re2::RE2> pattern_;
  // Whether the expression has an alternative for runs of white space that hold a newline.
  bool newlines_apart_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_TEXT_SPLITTER_H_
