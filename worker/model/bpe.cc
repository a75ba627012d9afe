#include "worker/model/bpe.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/base/check.h"
#include "proto/base/json.h"
#include "worker/model/utf8.h"

namespace ballast {
namespace {

// GPT-2's printable character for each byte: itself where Latin-1 prints it, the others from U+0100 on, in order.
std::array<int32_t, 256> MakeByteAlphabet() {
  std::array<int32_t, 256> chars;
  int32_t next = 0x100;
  for (int32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    chars[b] = printable ? b : next++;
  }
  return chars;
}

const std::array<int32_t, 256>& ByteAlphabet() {
  static const std::array<int32_t, 256> alphabet = MakeByteAlphabet();
  return alphabet;
}

// By character, -1 outside of the alphabet.
const std::array<int32_t, 0x200>& ByteOfAlphabet() {
  static const std::array<int32_t, 0x200> bytes = [] {
    std::array<int32_t, 0x200> inverse;
    inverse.fill(-1);
    for (int32_t b = 0; b < 256; ++b) inverse[ByteAlphabet()[b]] = b;
    return inverse;
  }();
  return bytes;
}

}  // namespace

std::optional<std::string> FromByteAlphabet(std::string_view token) {
  std::string bytes;
  while (!token.empty()) {
    const Utf8Char next = DecodeUtf8(token);
    if (next.kind != Utf8Char::Kind::kWhole || next.code_point >= 0x200) return std::nullopt;
    const int32_t byte = ByteOfAlphabet()[next.code_point];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    token.remove_prefix(next.length);
  }
  return bytes;
}

absl::StatusOr<Bpe> Bpe::Create(const absl::flat_hash_map<std::string, int32_t>& vocab,
                                const std::vector<std::pair<std::string, std::string>>& merges,
                                const BpeOptions& options) {
  Bpe bpe;
  bpe.byte_level_ = options.byte_level;
  bpe.byte_fallback_ = options.byte_fallback;
  bpe.fuse_unk_ = options.fuse_unk;
  const auto find = [&](const std::string& token) {
    const auto found = vocab.find(token);
    return found == vocab.end() ? -1 : found->second;
  };
  if (options.unk_token.has_value()) {
    bpe.unk_ = find(*options.unk_token);
    if (bpe.unk_ < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.unk_token ", Quote(*options.unk_token), " is not in the vocabulary"));
    }
  }
  for (int32_t b = 0; b < 256; ++b) {
    std::string token;
    AppendUtf8(ByteAlphabet()[b], token);
    bpe.byte_ids_[b] = find(token);
    bpe.fallback_ids_[b] = find(absl::StrFormat("<0x%02X>", b));
  }
  for (const auto& [token, id] : vocab) {
    if (token.empty()) continue;
    const Utf8Char first = DecodeUtf8(token);
    if (!options.byte_level && first.length == token.size()) bpe.char_ids_[first.code_point] = id;
    if (options.ignore_merges) {
      const std::optional<std::string> text = options.byte_level ? FromByteAlphabet(token) : token;
      if (text.has_value()) bpe.words_[*text] = id;
    }
  }
  bpe.merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const int32_t left_id = find(left), right_id = find(right), merged = find(left + right);
    if (left_id < 0 || right_id < 0 || merged < 0) {
      return absl::InvalidArgumentError(absl::StrCat("model.merges[", rank, "]: ",
                                                     Quote(left_id < 0    ? left
                                                           : right_id < 0 ? right
                                                                          : left + right),
                                                     " is not in the vocabulary"));
    }
    // The later of two equal pairs counts, as it does for the library.
    bpe.merges_[uint64_t{static_cast<uint32_t>(left_id)} << 32 | static_cast<uint32_t>(right_id)] = {
        .rank = static_cast<uint32_t>(rank), .merged = merged};
  }
  return bpe;
}

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::FindByteSymbols(std::string_view word, Scratch& scratch) const {
  bool unk_pending = false;
  const auto push = [&](int32_t id) { scratch.symbols.push_back({.id = id}); };
  for (const char c : word) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id >= 0) {
      if (unk_pending) push(unk_);
      unk_pending = false;
      push(id);
    } else if (unk_ >= 0) {
      if (unk_pending && !fuse_unk_) push(unk_);
      unk_pending = true;
    }
  }
  if (unk_pending) push(unk_);
}

void Bpe::FindCharSymbols(std::string_view word, Scratch& scratch) const {
  bool unk_pending = false;
  const auto push = [&](int32_t id) { scratch.symbols.push_back({.id = id}); };
  while (!word.empty()) {
    const Utf8Char next = DecodeUtf8(word);
    BALLAST_CHECK(next.kind == Utf8Char::Kind::kWhole);
    const std::string_view bytes = word.substr(0, next.length);
    word.remove_prefix(next.length);
    if (const auto found = char_ids_.find(next.code_point); found != char_ids_.end()) {
      if (unk_pending) push(unk_);
      unk_pending = false;
      push(found->second);
      continue;
    }
    const auto has_fallback = [&](char b) { return fallback_ids_[static_cast<uint8_t>(b)] >= 0; };
    if (byte_fallback_ && std::all_of(bytes.begin(), bytes.end(), has_fallback)) {
      // Before a pending unk_token: so does the library.
      for (const char b : bytes) push(fallback_ids_[static_cast<uint8_t>(b)]);
    } else if (unk_ >= 0) {
      if (unk_pending && !fuse_unk_) push(unk_);
      unk_pending = true;
    }
  }
  if (unk_pending) push(unk_);
}

void Bpe::FindSymbols(std::string_view word, Scratch& scratch) const {
  scratch.symbols.clear();
  if (byte_level_) {
    FindByteSymbols(word, scratch);
  } else {
    FindCharSymbols(word, scratch);
  }
  const int32_t count = static_cast<int32_t>(scratch.symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    scratch.symbols[i].prev = i - 1;
    scratch.symbols[i].next = i + 1 < count ? i + 1 : -1;
  }
}

namespace {

// The heap's top is the least.
constexpr auto kLater = [](const auto& a, const auto& b) { return a.order > b.order; };

}  // namespace

void Bpe::Propose(Scratch& scratch, int32_t left, int32_t right) const {
  const Merge* merge = FindMerge(scratch.symbols[left].id, scratch.symbols[right].id);
  if (merge == nullptr) return;
  scratch.queue.push_back(
      {.order = uint64_t{merge->rank} << 32 | static_cast<uint32_t>(left), .merged = merge->merged});
}

void Bpe::Encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
  BALLAST_CHECK(word.size() <= static_cast<size_t>(std::numeric_limits<int32_t>::max()));
  if (!words_.empty()) {
    if (const auto found = words_.find(absl::string_view(word.data(), word.size())); found != words_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  FindSymbols(word, scratch);
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  scratch.queue.clear();
  for (size_t i = 1; i < symbols.size(); ++i) {
    Propose(scratch, static_cast<int32_t>(i - 1), static_cast<int32_t>(i));
  }
  std::make_heap(scratch.queue.begin(), scratch.queue.end(), kLater);
  while (!scratch.queue.empty()) {
    const Scratch::Candidate top = scratch.queue.front();
    std::pop_heap(scratch.queue.begin(), scratch.queue.end(), kLater);
    scratch.queue.pop_back();

    const int32_t at = static_cast<int32_t>(top.order & 0xFFFFFFFF);
    Scratch::Symbol& left = symbols[at];
    if (left.id < 0 || left.next < 0) continue;
    const int32_t right_at = left.next;
    Scratch::Symbol& right = symbols[right_at];
    // A neighbour has been merged since: what is here now has a candidate of its own. By the result rather than by the
    // pair, as the library does it.
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->merged != top.merged) continue;

    left.id = top.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].prev = at;
    const auto propose = [&](int32_t a, int32_t b) {
      const size_t before = scratch.queue.size();
      Propose(scratch, a, b);
      if (scratch.queue.size() > before) std::push_heap(scratch.queue.begin(), scratch.queue.end(), kLater);
    };
    if (left.prev >= 0) propose(left.prev, at);
    if (left.next >= 0) propose(at, left.next);
  }
  for (const Scratch::Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids.push_back(symbol.id);
  }
}

}  // namespace ballast
