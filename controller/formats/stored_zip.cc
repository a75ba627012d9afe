#include "controller/formats/stored_zip.h"

#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// PKWARE's APPNOTE.TXT: signatures and sizes of the fixed parts.
constexpr uint32_t kLocal = 0x04034b50;
constexpr uint32_t kCentral = 0x02014b50;
constexpr uint32_t kEnd = 0x06054b50;
constexpr uint32_t kEnd64 = 0x06064b50;
constexpr uint32_t kEnd64Locator = 0x07064b50;
constexpr uint64_t kLocalSize = 30;
constexpr uint64_t kCentralSize = 46;
constexpr uint64_t kEndSize = 22;
constexpr uint64_t kEnd64Size = 56;
constexpr uint64_t kEnd64LocatorSize = 20;
constexpr uint16_t kZip64Extra = 1;
constexpr uint32_t kIn64 = 0xFFFFFFFF;

absl::Status Damaged(const absl::AlphaNum& what) {
  return absl::InvalidArgumentError(absl::StrCat("zip archive: ", what));
}

// Little-endian numbers at `at`; the caller has checked the bounds.
uint64_t Number(std::string_view bytes, uint64_t at, int size) {
  uint64_t value = 0;
  for (int i = size - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

bool Within(std::string_view bytes, uint64_t at, uint64_t size) {
  return at <= bytes.size() && size <= bytes.size() - at;
}

struct Directory {
  uint64_t entries = 0;
  uint64_t at = 0;
  uint64_t size = 0;
};

absl::StatusOr<Directory> FindDirectory(std::string_view bytes) {
  if (bytes.size() < kEndSize) return Damaged("is cut: it has no end record");
  // The end record's comment, up to 64 KiB, comes last.
  const uint64_t first = bytes.size() - std::min<uint64_t>(bytes.size(), kEndSize + 0xFFFF);
  uint64_t end = bytes.size() - kEndSize;
  while (Number(bytes, end, 4) != kEnd || Number(bytes, end + 20, 2) != bytes.size() - end - kEndSize) {
    if (end == first) return Damaged("is cut: it has no end record");
    --end;
  }
  Directory directory{
      .entries = Number(bytes, end + 10, 2), .at = Number(bytes, end + 16, 4), .size = Number(bytes, end + 12, 4)};
  if (end >= kEnd64LocatorSize && Number(bytes, end - kEnd64LocatorSize, 4) == kEnd64Locator) {
    const uint64_t end64 = Number(bytes, end - kEnd64LocatorSize + 8, 8);
    if (!Within(bytes, end64, kEnd64Size) || Number(bytes, end64, 4) != kEnd64) {
      return Damaged(absl::StrCat("its zip64 end record is not at byte ", end64));
    }
    directory = {.entries = Number(bytes, end64 + 32, 8),
                 .at = Number(bytes, end64 + 48, 8),
                 .size = Number(bytes, end64 + 40, 8)};
  }
  if (!Within(bytes, directory.at, directory.size)) {
    return Damaged(absl::StrCat("its directory of ", directory.size, " bytes at ", directory.at,
                                " is not in the file of ", bytes.size()));
  }
  if (directory.entries > directory.size / kCentralSize) {
    return Damaged(absl::StrCat(directory.entries, " entries in a directory of ", directory.size, " bytes"));
  }
  return directory;
}

struct Entry {
  std::string name;
  uint64_t compressed = 0;
  uint64_t size = 0;
  uint64_t local = 0;
  uint32_t crc = 0;
};

// Reads the entry at `at` of the directory and moves `at` behind it.
absl::StatusOr<Entry> ReadEntry(std::string_view directory, uint64_t& at) {
  if (!Within(directory, at, kCentralSize) || Number(directory, at, 4) != kCentral) {
    return Damaged(absl::StrCat("no entry at byte ", at, " of its directory"));
  }
  const uint64_t name_size = Number(directory, at + 28, 2);
  const uint64_t extra_size = Number(directory, at + 30, 2);
  const uint64_t comment_size = Number(directory, at + 32, 2);
  if (!Within(directory, at + kCentralSize, name_size + extra_size + comment_size)) {
    return Damaged(absl::StrCat("the entry at byte ", at, " of its directory is cut"));
  }
  Entry entry{.name = std::string(directory.substr(at + kCentralSize, name_size)),
              .compressed = Number(directory, at + 20, 4),
              .size = Number(directory, at + 24, 4),
              .local = Number(directory, at + 42, 4),
              .crc = static_cast<uint32_t>(Number(directory, at + 16, 4))};
  const std::string quoted = Quote(entry.name);
  if ((Number(directory, at + 8, 2) & 1) != 0) return Damaged(absl::StrCat("entry ", quoted, " is encrypted"));
  if (const uint64_t method = Number(directory, at + 10, 2); method != 0) {
    return Damaged(absl::StrCat("entry ", quoted, " is compressed (method ", method, "); torch.save only stores"));
  }
  std::string_view extra = directory.substr(at + kCentralSize + name_size, extra_size);
  while (extra.size() >= 4) {
    const uint64_t size = Number(extra, 2, 2);
    if (size > extra.size() - 4) break;
    if (Number(extra, 0, 2) == kZip64Extra) {
      uint64_t field = 4;
      // The fields that did not fit, in this order.
      for (uint64_t* value : {&entry.size, &entry.compressed, &entry.local}) {
        if (*value != kIn64) continue;
        if (field + 8 > 4 + size) return Damaged(absl::StrCat("entry ", quoted, " has a zip64 field that is cut"));
        *value = Number(extra, field, 8);
        field += 8;
      }
    }
    extra.remove_prefix(4 + size);
  }
  at += kCentralSize + name_size + extra_size + comment_size;
  return entry;
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string_view>> ReadStoredZip(std::string_view bytes) {
  BALLAST_ASSIGN_OR_RETURN(const Directory found, FindDirectory(bytes));
  const std::string_view directory = bytes.substr(found.at, found.size);
  std::map<std::string, std::string_view> entries;
  std::vector<std::pair<uint64_t, uint64_t>> taken;
  uint64_t at = 0;
  for (uint64_t i = 0; i < found.entries; ++i) {
    BALLAST_ASSIGN_OR_RETURN(const Entry entry, ReadEntry(directory, at));
    const std::string quoted = Quote(entry.name);
    if (entry.compressed != entry.size) {
      return Damaged(absl::StrCat("entry ", quoted, " is stored, yet ", entry.size, " bytes take ", entry.compressed));
    }
    if (!Within(bytes, entry.local, kLocalSize) || Number(bytes, entry.local, 4) != kLocal) {
      return Damaged(absl::StrCat("entry ", quoted, " is not at byte ", entry.local));
    }
    const uint64_t name_size = Number(bytes, entry.local + 26, 2);
    const uint64_t data = entry.local + kLocalSize + name_size + Number(bytes, entry.local + 28, 2);
    if (!Within(bytes, data, entry.size)) {
      return Damaged(absl::StrCat("entry ", quoted, " of ", entry.size, " bytes is cut"));
    }
    if (bytes.substr(entry.local + kLocalSize, name_size) != entry.name) {
      return Damaged(absl::StrCat("entry ", quoted, " has another name in its own header"));
    }
    taken.emplace_back(entry.local, data + entry.size);
    if (!entries.emplace(entry.name, bytes.substr(data, entry.size)).second) {
      return Damaged(absl::StrCat("two entries have the name ", quoted));
    }
  }
  // Before any checksum: entries that overlap could be read over and over.
  std::sort(taken.begin(), taken.end());
  for (size_t i = 1; i < taken.size(); ++i) {
    if (taken[i].first < taken[i - 1].second) {
      return Damaged(absl::StrCat("two entries overlap at byte ", taken[i].first));
    }
  }
  at = 0;
  for (uint64_t i = 0; i < found.entries; ++i) {
    BALLAST_ASSIGN_OR_RETURN(const Entry entry, ReadEntry(directory, at));
    const std::string_view data = entries[entry.name];
    const auto crc = crc32_z(0, reinterpret_cast<const Bytef*>(data.data()), data.size());
    if (crc != entry.crc) {
      return Damaged(absl::StrCat("entry ", Quote(entry.name), " is damaged: its checksum differs"));
    }
  }
  return entries;
}

}  // namespace ballast
