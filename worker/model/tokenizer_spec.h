// A tokenizer.json as data: checked, but not yet made fast.
#ifndef BALLAST_WORKER_MODEL_TOKENIZER_SPEC_H_
#define BALLAST_WORKER_MODEL_TOKENIZER_SPEC_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "worker/model/bpe.h"
#include "worker/model/text_splitter.h"

namespace ballast {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  // Takes the white space before, or after, with it.
  bool lstrip = false;
  bool rstrip = false;
  // Looked for in the normalized text, in its normalized form, rather than in the text as given.
  bool normalized = false;
  bool special = false;
};

// Normalizers, applied one after another.
struct NfcNormalizer {};
struct PrependNormalizer {
  std::string prefix;
};
struct ReplaceNormalizer {
  std::string pattern;
  std::string content;
};
using Normalizer = std::variant<NfcNormalizer, PrependNormalizer, ReplaceNormalizer>;

struct MetaspaceSpec {
  enum class Prepend { kNever, kFirst, kAlways };
  // What stands for a space: one code point.
  std::string replacement;
  Prepend prepend = Prepend::kAlways;
  // Whether each replacement starts a word.
  bool split = true;
};

struct ByteLevelSpec {
  // A space before every piece that does not start with one.
  bool add_prefix_space = true;
  // Whether to cut by GPT-2's expression.
  bool split = true;
};

// Cuts, then one of the two last steps or none.
struct PreTokenizerSpec {
  std::vector<TextSplitter> splits;
  std::variant<std::monostate, ByteLevelSpec, MetaspaceSpec> last;
};

struct DecoderSpec {
  enum class Strip { kNothing, kOneSpace, kSpacesOfFirstToken };
  bool byte_level = false;
  // <0x41> is the byte 0x41.
  bool byte_fallback = false;
  // In the tokens' text.
  std::optional<ReplaceNormalizer> replace;
  // At the start of a text.
  Strip strip = Strip::kNothing;
};

struct TokenizerSpec {
  // Distinct tokens with distinct ids.
  absl::flat_hash_map<std::string, int32_t> vocab;
  std::vector<std::pair<std::string, std::string>> merges;
  BpeOptions bpe;
  // Ids agree with the vocabulary's; contents are distinct.
  std::vector<AddedToken> added_tokens;
  std::vector<Normalizer> normalizers;
  PreTokenizerSpec pre_tokenizer;
  DecoderSpec decoder;
  // Put before and after a text.
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

// Ids that a tokenizer may have are below this.
inline constexpr int32_t kMaxTokenIds = 1 << 22;

// InvalidArgument: broken, says field, value and what is wanted. Unimplemented: sound as far as it was read, but with a
// feature that Ballast does not know; names it.
absl::StatusOr<TokenizerSpec> ParseTokenizerSpec(std::string_view json);

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_TOKENIZER_SPEC_H_
