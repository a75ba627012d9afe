#include "worker/model/tokenizer_spec.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"
#include "worker/model/utf8.h"

namespace ballast {
namespace {

// Longer ones would only serve to make encoding slow.
constexpr size_t kMaxAddedTokenBytes = 256;
constexpr size_t kMaxReplacementBytes = 16;
constexpr size_t kMaxTemplateIds = 64;

absl::Status Unsupported(const absl::AlphaNum& what) {
  return absl::UnimplementedError(absl::StrCat(what, " is not supported"));
}

// The elements of a component that may be one or a "Sequence" of several. Sequences do not nest in files that exist.
absl::StatusOr<std::vector<JsonFields>> Components(const JsonFields& root, const char* field, const char* list) {
  std::vector<JsonFields> components;
  const nlohmann::json* value = root.Find(field);
  if (value == nullptr) return components;
  BALLAST_ASSIGN_OR_RETURN(const JsonFields component, JsonFields::Of(*value, field));
  BALLAST_ASSIGN_OR_RETURN(const std::string type, component.String("type"));
  if (type != "Sequence") {
    components.push_back(component);
    return components;
  }
  const nlohmann::json* elements = component.Find(list);
  if (elements == nullptr || !elements->is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(component.Name(list), " is missing or not an array"));
  }
  for (size_t i = 0; i < elements->size(); ++i) {
    BALLAST_ASSIGN_OR_RETURN(const JsonFields element,
                             JsonFields::Of((*elements)[i], absl::StrCat(component.Name(list), "[", i, "]")));
    components.push_back(element);
  }
  return components;
}

absl::Status ParseVocab(const JsonFields& model, TokenizerSpec& spec) {
  const nlohmann::json* vocab = model.Find("vocab");
  if (vocab == nullptr || !vocab->is_object()) {
    return absl::InvalidArgumentError("model.vocab is missing or not an object");
  }
  absl::flat_hash_set<int32_t> ids;
  spec.vocab.reserve(vocab->size());
  for (const auto& [token, value] : vocab->items()) {
    BALLAST_ASSIGN_OR_RETURN(const int32_t id,
                             JsonInt(absl::StrCat("model.vocab[", Quote(token), "]"), value, 0, kMaxTokenIds - 1));
    if (!ids.insert(id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.vocab[", Quote(token), "] is ", id, ", as another token is"));
    }
    spec.vocab[token] = id;
  }
  return absl::OkStatus();
}

// Each "a b" in one generation of files, ["a", "b"] in the other.
absl::Status ParseMerges(const JsonFields& model, TokenizerSpec& spec) {
  const nlohmann::json* merges = model.Find("merges");
  if (merges == nullptr || !merges->is_array()) {
    return absl::InvalidArgumentError("model.merges is missing or not an array");
  }
  spec.merges.reserve(merges->size());
  for (size_t i = 0; i < merges->size(); ++i) {
    const nlohmann::json& merge = (*merges)[i];
    if (merge.is_string()) {
      const std::string& text = merge.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      const size_t space = text.find(' ');
      if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
        spec.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
        continue;
      }
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      spec.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    return WrongValue(absl::StrCat("model.merges[", i, "]"), merge, "two tokens");
  }
  return absl::OkStatus();
}

absl::Status ParseModel(const JsonFields& root, TokenizerSpec& spec) {
  const nlohmann::json* value = root.Find("model");
  if (value == nullptr) return absl::InvalidArgumentError("model is missing");
  BALLAST_ASSIGN_OR_RETURN(const JsonFields model, JsonFields::Of(*value, "model"));
  // Old files do not say the type; only BPE has merges.
  BALLAST_ASSIGN_OR_RETURN(const std::string type, model.String("type", model.Find("merges") == nullptr ? "" : "BPE"));
  if (type != "BPE") return Unsupported(absl::StrCat("model.type ", Quote(type)));
  BALLAST_ASSIGN_OR_RETURN(const double dropout, model.Double("dropout", 0, 1, 0));
  if (dropout != 0) return Unsupported(absl::StrCat("model.dropout ", dropout));
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    BALLAST_ASSIGN_OR_RETURN(const std::string text, model.String(affix, ""));
    if (!text.empty()) return Unsupported(absl::StrCat(model.Name(affix), " ", Quote(text)));
  }
  if (model.Find("unk_token") != nullptr) {
    BALLAST_ASSIGN_OR_RETURN(spec.bpe.unk_token, model.String("unk_token"));
  }
  BALLAST_ASSIGN_OR_RETURN(spec.bpe.fuse_unk, model.Bool("fuse_unk", false));
  BALLAST_ASSIGN_OR_RETURN(spec.bpe.byte_fallback, model.Bool("byte_fallback", false));
  BALLAST_ASSIGN_OR_RETURN(spec.bpe.ignore_merges, model.Bool("ignore_merges", false));
  BALLAST_RETURN_IF_ERROR(ParseVocab(model, spec));
  return ParseMerges(model, spec);
}

// The id that the library gives a token is not always the one in the file: it must be, or the model was trained with
// another.
absl::Status CheckAddedId(const TokenizerSpec& spec, const AddedToken& token, int32_t next_id) {
  const auto found = spec.vocab.find(token.content);
  const int32_t id = found == spec.vocab.end() ? next_id : found->second;
  if (token.id == id) return absl::OkStatus();
  return Unsupported(absl::StrCat("added token ", Quote(token.content), " with id ", token.id,
                                  ", where Hugging Face's library would give it ", id, ","));
}

absl::Status ParseAddedTokens(const JsonFields& root, TokenizerSpec& spec) {
  const nlohmann::json* list = root.Find("added_tokens");
  if (list == nullptr) return absl::OkStatus();
  if (!list->is_array()) return WrongValue("added_tokens", *list, "an array");
  absl::flat_hash_set<std::string> contents;
  int32_t next_id = static_cast<int32_t>(spec.vocab.size());
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string name = absl::StrCat("added_tokens[", i, "]");
    BALLAST_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of((*list)[i], name));
    AddedToken token;
    BALLAST_ASSIGN_OR_RETURN(token.id, fields.Int("id", 0, kMaxTokenIds - 1));
    BALLAST_ASSIGN_OR_RETURN(token.content, fields.String("content"));
    if (token.content.empty() || token.content.size() > kMaxAddedTokenBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ".content has ", token.content.size(), " bytes, want 1 to ", kMaxAddedTokenBytes));
    }
    if (!contents.insert(token.content).second) {
      return absl::InvalidArgumentError(absl::StrCat(name, ".content ", Quote(token.content), " is there twice"));
    }
    BALLAST_ASSIGN_OR_RETURN(const bool single_word, fields.Bool("single_word", false));
    if (single_word) return Unsupported(absl::StrCat(name, ".single_word"));
    BALLAST_ASSIGN_OR_RETURN(token.special, fields.Bool("special", false));
    BALLAST_ASSIGN_OR_RETURN(token.lstrip, fields.Bool("lstrip", false));
    BALLAST_ASSIGN_OR_RETURN(token.rstrip, fields.Bool("rstrip", false));
    BALLAST_ASSIGN_OR_RETURN(token.normalized, fields.Bool("normalized", !token.special));
    BALLAST_RETURN_IF_ERROR(CheckAddedId(spec, token, next_id));
    if (token.id == next_id && !spec.vocab.contains(token.content)) ++next_id;
    spec.added_tokens.push_back(std::move(token));
  }
  // The library's result is odd where one token strips what another one is made of.
  const bool strips =
      std::any_of(spec.added_tokens.begin(), spec.added_tokens.end(), [](const auto& t) { return t.rstrip; });
  for (const AddedToken& token : spec.added_tokens) {
    if (strips && IsWhiteSpace(DecodeUtf8(token.content).code_point)) {
      return Unsupported(absl::StrCat("added token ", Quote(token.content), " beside tokens with rstrip"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ReplaceNormalizer> ParseReplace(const JsonFields& fields) {
  ReplaceNormalizer replace;
  const nlohmann::json* value = fields.Find("pattern");
  if (value == nullptr) return absl::InvalidArgumentError(absl::StrCat(fields.Name("pattern"), " is missing"));
  BALLAST_ASSIGN_OR_RETURN(const JsonFields pattern, JsonFields::Of(*value, fields.Name("pattern")));
  if (pattern.Find("String") == nullptr)
    return Unsupported(absl::StrCat(fields.Name("pattern"), " other than a String"));
  BALLAST_ASSIGN_OR_RETURN(replace.pattern, pattern.String("String"));
  BALLAST_ASSIGN_OR_RETURN(replace.content, fields.String("content"));
  for (const std::string& text : {replace.pattern, replace.content}) {
    if (text.empty() || text.size() > kMaxReplacementBytes) {
      return Unsupported(absl::StrCat(fields.Name("type"), " Replace with ", text.size(), " bytes"));
    }
  }
  return replace;
}

absl::Status ParseNormalizers(const JsonFields& root, TokenizerSpec& spec) {
  BALLAST_ASSIGN_OR_RETURN(const auto components, Components(root, "normalizer", "normalizers"));
  for (const JsonFields& fields : components) {
    BALLAST_ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
    if (type == "NFC") {
      spec.normalizers.push_back(NfcNormalizer{});
    } else if (type == "Prepend") {
      PrependNormalizer prepend;
      BALLAST_ASSIGN_OR_RETURN(prepend.prefix, fields.String("prepend"));
      if (prepend.prefix.size() > kMaxReplacementBytes) {
        return Unsupported(absl::StrCat(fields.Name("prepend"), " of ", prepend.prefix.size(), " bytes"));
      }
      spec.normalizers.push_back(std::move(prepend));
    } else if (type == "Replace") {
      BALLAST_ASSIGN_OR_RETURN(ReplaceNormalizer replace, ParseReplace(fields));
      spec.normalizers.push_back(std::move(replace));
    } else {
      return Unsupported(absl::StrCat(fields.Name("type"), " ", Quote(type)));
    }
  }
  // Each may make the text longer.
  constexpr size_t kMaxNormalizers = 4;
  if (components.size() > kMaxNormalizers) {
    return Unsupported(absl::StrCat("normalizer of ", components.size(), " steps"));
  }
  return absl::OkStatus();
}

absl::StatusOr<MetaspaceSpec> ParseMetaspace(const JsonFields& fields) {
  MetaspaceSpec metaspace;
  BALLAST_ASSIGN_OR_RETURN(metaspace.replacement, fields.String("replacement"));
  if (metaspace.replacement.empty() || DecodeUtf8(metaspace.replacement).length != metaspace.replacement.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.Name("replacement"), " is ", Quote(metaspace.replacement), ", want one character"));
  }
  BALLAST_ASSIGN_OR_RETURN(metaspace.split, fields.Bool("split", true));
  // Old files have add_prefix_space instead of the scheme.
  BALLAST_ASSIGN_OR_RETURN(const bool prefix, fields.Bool("add_prefix_space", true));
  BALLAST_ASSIGN_OR_RETURN(const std::string scheme, fields.String("prepend_scheme", prefix ? "always" : "never"));
  if (scheme == "always") {
    metaspace.prepend = MetaspaceSpec::Prepend::kAlways;
  } else if (scheme == "first") {
    metaspace.prepend = MetaspaceSpec::Prepend::kFirst;
  } else if (scheme == "never") {
    metaspace.prepend = MetaspaceSpec::Prepend::kNever;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.Name("prepend_scheme"), " is ", Quote(scheme), ", want always, first or never"));
  }
  return metaspace;
}

absl::StatusOr<TextSplitter> ParseSplit(const JsonFields& fields) {
  const nlohmann::json* value = fields.Find("pattern");
  if (value == nullptr) return absl::InvalidArgumentError(absl::StrCat(fields.Name("pattern"), " is missing"));
  BALLAST_ASSIGN_OR_RETURN(const JsonFields pattern, JsonFields::Of(*value, fields.Name("pattern")));
  BALLAST_ASSIGN_OR_RETURN(const std::string behavior, fields.String("behavior"));
  BALLAST_ASSIGN_OR_RETURN(const bool invert, fields.Bool("invert", false));
  if (behavior != "Isolated" || invert) {
    return Unsupported(absl::StrCat(fields.Name("behavior"), " ", Quote(behavior), invert ? " inverted" : ""));
  }
  if (pattern.Find("Regex") == nullptr) return Unsupported(absl::StrCat(fields.Name("pattern"), " other than a Regex"));
  BALLAST_ASSIGN_OR_RETURN(const std::string regex, pattern.String("Regex"));
  std::optional<TextSplitter> splitter = TextSplitter::ForPattern(regex);
  if (!splitter.has_value()) return Unsupported(absl::StrCat(pattern.Name("Regex"), " ", Quote(regex, 512)));
  return *std::move(splitter);
}

absl::Status ParsePreTokenizer(const JsonFields& root, TokenizerSpec& spec) {
  BALLAST_ASSIGN_OR_RETURN(const auto components, Components(root, "pre_tokenizer", "pretokenizers"));
  constexpr size_t kMaxSteps = 8;
  if (components.size() > kMaxSteps) return Unsupported(absl::StrCat("pre_tokenizer of ", components.size(), " steps"));
  PreTokenizerSpec& pre = spec.pre_tokenizer;
  for (const JsonFields& fields : components) {
    BALLAST_ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
    if (!std::holds_alternative<std::monostate>(pre.last)) {
      return Unsupported(absl::StrCat(fields.Name("type"), " ", Quote(type), " after ByteLevel or Metaspace"));
    }
    if (type == "Split") {
      BALLAST_ASSIGN_OR_RETURN(TextSplitter splitter, ParseSplit(fields));
      pre.splits.push_back(std::move(splitter));
    } else if (type == "ByteLevel") {
      ByteLevelSpec byte_level;
      BALLAST_ASSIGN_OR_RETURN(byte_level.add_prefix_space, fields.Bool("add_prefix_space"));
      BALLAST_ASSIGN_OR_RETURN(byte_level.split, fields.Bool("use_regex", true));
      pre.last = byte_level;
      spec.bpe.byte_level = true;
    } else if (type == "Metaspace") {
      BALLAST_ASSIGN_OR_RETURN(pre.last, ParseMetaspace(fields));
    } else {
      return Unsupported(absl::StrCat(fields.Name("type"), " ", Quote(type)));
    }
  }
  if (spec.bpe.byte_level && spec.bpe.byte_fallback)
    return Unsupported("model.byte_fallback with pre_tokenizer ByteLevel");
  return absl::OkStatus();
}

// ByteLevel alone, Metaspace alone, or some of Replace, ByteFallback, Fuse, Strip in that order.
absl::Status ParseDecoder(const JsonFields& root, TokenizerSpec& spec) {
  BALLAST_ASSIGN_OR_RETURN(const auto components, Components(root, "decoder", "decoders"));
  if (components.empty()) return Unsupported("decoder null");
  int stage = 0;
  bool fused = false;
  const auto in_order = [&](int this_stage) {
    const bool ok = stage < this_stage;
    stage = this_stage;
    return ok;
  };
  for (const JsonFields& fields : components) {
    BALLAST_ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
    bool known = false;
    if (type == "ByteLevel" && components.size() == 1) {
      spec.decoder.byte_level = known = true;
    } else if (type == "Metaspace" && components.size() == 1) {
      known = true;
      BALLAST_ASSIGN_OR_RETURN(const MetaspaceSpec metaspace, ParseMetaspace(fields));
      spec.decoder.replace = ReplaceNormalizer{.pattern = metaspace.replacement, .content = " "};
      if (metaspace.prepend != MetaspaceSpec::Prepend::kNever) {
        spec.decoder.strip = DecoderSpec::Strip::kSpacesOfFirstToken;
      }
    } else if (type == "Replace") {
      known = in_order(1);
      BALLAST_ASSIGN_OR_RETURN(spec.decoder.replace, ParseReplace(fields));
    } else if (type == "ByteFallback") {
      known = spec.decoder.byte_fallback = in_order(2);
    } else if (type == "Fuse") {
      known = fused = in_order(3);
    } else if (type == "Strip" && fused) {
      BALLAST_ASSIGN_OR_RETURN(const std::string content, fields.String("content"));
      BALLAST_ASSIGN_OR_RETURN(const int32_t start, fields.Int("start", 0, 1 << 30));
      BALLAST_ASSIGN_OR_RETURN(const int32_t stop, fields.Int("stop", 0, 1 << 30));
      known = in_order(4) && content == " " && start <= 1 && stop == 0;
      if (start == 1) spec.decoder.strip = DecoderSpec::Strip::kOneSpace;
    }
    if (!known) return Unsupported(absl::StrCat(fields.Name("type"), " ", Quote(type), " at this place"));
  }
  if (spec.decoder.byte_level != spec.bpe.byte_level) {
    return Unsupported("ByteLevel in only one of pre_tokenizer and decoder");
  }
  return absl::OkStatus();
}

// TemplateProcessing's "single": special tokens around one sequence A.
absl::Status ParseTemplate(const JsonFields& fields, TokenizerSpec& spec) {
  const nlohmann::json* single = fields.Find("single");
  const nlohmann::json* specials = fields.Find("special_tokens");
  if (single == nullptr || !single->is_array() || specials == nullptr || !specials->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.Name("single"), " or ", fields.Name("special_tokens"), " is missing or of a wrong type"));
  }
  bool after_text = false;
  for (size_t i = 0; i < single->size(); ++i) {
    const std::string name = absl::StrCat(fields.Name("single"), "[", i, "]");
    BALLAST_ASSIGN_OR_RETURN(const JsonFields piece, JsonFields::Of((*single)[i], name));
    if (const nlohmann::json* sequence = piece.Find("Sequence"); sequence != nullptr) {
      BALLAST_ASSIGN_OR_RETURN(const JsonFields inner, JsonFields::Of(*sequence, piece.Name("Sequence")));
      BALLAST_ASSIGN_OR_RETURN(const std::string id, inner.String("id"));
      if (id != "A" || after_text) return Unsupported(absl::StrCat(inner.Name("id"), " ", Quote(id), " at this place"));
      after_text = true;
      continue;
    }
    const nlohmann::json* token = piece.Find("SpecialToken");
    if (token == nullptr)
      return absl::InvalidArgumentError(absl::StrCat(name, " is neither a Sequence nor a SpecialToken"));
    BALLAST_ASSIGN_OR_RETURN(const JsonFields inner, JsonFields::Of(*token, piece.Name("SpecialToken")));
    BALLAST_ASSIGN_OR_RETURN(const std::string id, inner.String("id"));
    const auto special = specials->find(id);
    if (special == specials->end() || !special->is_object() || !special->contains("ids") ||
        !(*special)["ids"].is_array()) {
      return absl::InvalidArgumentError(absl::StrCat(fields.Name("special_tokens"), " has no ids of ", Quote(id)));
    }
    std::vector<int32_t>& ids = after_text ? spec.suffix : spec.prefix;
    for (const nlohmann::json& value : (*special)["ids"]) {
      BALLAST_ASSIGN_OR_RETURN(
          const int32_t one, JsonInt(absl::StrCat(fields.Name("special_tokens"), ".ids"), value, 0, kMaxTokenIds - 1));
      ids.push_back(one);
    }
    if (ids.size() > kMaxTemplateIds) return Unsupported(absl::StrCat(fields.Name("single"), " of so many ids"));
  }
  if (!after_text) return Unsupported(absl::StrCat(fields.Name("single"), " without a sequence"));
  return absl::OkStatus();
}

absl::Status ParsePostProcessor(const JsonFields& root, TokenizerSpec& spec) {
  BALLAST_ASSIGN_OR_RETURN(const auto components, Components(root, "post_processor", "processors"));
  bool has_template = false;
  for (const JsonFields& fields : components) {
    BALLAST_ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
    // ByteLevel only moves offsets, which Ballast does not give.
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing" || has_template)
      return Unsupported(absl::StrCat(fields.Name("type"), " ", Quote(type)));
    has_template = true;
    BALLAST_RETURN_IF_ERROR(ParseTemplate(fields, spec));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerSpec> ParseTokenizerSpec(std::string_view json) {
  BALLAST_ASSIGN_OR_RETURN(const nlohmann::json value, ParseJson(json));
  if (!value.is_object())
    return absl::InvalidArgumentError(absl::StrCat("wants a JSON object, got ", QuoteJson(value)));
  const JsonFields root(value);
  for (const char* field : {"truncation", "padding"}) {
    if (root.Find(field) != nullptr) return Unsupported(absl::StrCat(field));
  }
  TokenizerSpec spec;
  BALLAST_RETURN_IF_ERROR(ParseModel(root, spec));
  BALLAST_RETURN_IF_ERROR(ParseAddedTokens(root, spec));
  BALLAST_RETURN_IF_ERROR(ParseNormalizers(root, spec));
  BALLAST_RETURN_IF_ERROR(ParsePreTokenizer(root, spec));
  BALLAST_RETURN_IF_ERROR(ParseDecoder(root, spec));
  BALLAST_RETURN_IF_ERROR(ParsePostProcessor(root, spec));
  return spec;
}

}  // namespace ballast
