#include "controller/formats/load_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <set>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/formats/load_readers.h"
#include "nlohmann/json.hpp"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

using Json = nlohmann::json;
using internal::Bad;

absl::Status SystemError(const std::string& path, const char* what, int error) {
  const std::string message = absl::StrCat(path, ": ", what, ": ", std::generic_category().message(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::StatusOr<std::string> ReadAll(int fd, const std::string& path) {
  struct stat status = {};
  if (fstat(fd, &status) != 0) return SystemError(path, "cannot be read", errno);
  if (S_ISDIR(status.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": is a directory"));
  std::string bytes;
  if (S_ISREG(status.st_mode)) {
    if (status.st_size > kMaxLoadBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", status.st_size, " bytes; the limit is ", kMaxLoadBytes));
    }
    bytes.reserve(static_cast<size_t>(status.st_size));
  }
  // In pieces: a pipe does not say how much comes.
  std::string piece(1 << 20, '\0');
  while (true) {
    const ssize_t got = read(fd, piece.data(), piece.size());
    if (got == 0) return bytes;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return SystemError(path, "cannot be read", errno);
    bytes.append(piece.data(), static_cast<size_t>(got));
    if (static_cast<int64_t>(bytes.size()) > kMaxLoadBytes) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": more than ", kMaxLoadBytes, " bytes; that is the limit"));
    }
  }
}

bool IsGzip(std::string_view bytes) { return bytes.substr(0, 2) == "\x1f\x8b"; }

absl::Status Select(const std::string& select, const std::string& name, LoadFile& file) {
  std::vector<std::string> names;
  for (LoadPart& part : file.parts) {
    part.name = ToUtf8(part.name);
    names.push_back(part.name);
  }
  std::set<std::string> distinct(names.begin(), names.end());
  if (distinct.size() != names.size()) return Bad(name, "two parts have the same name");
  if (!select.empty()) {
    std::erase_if(file.parts, [&](const LoadPart& part) {
      return part.name != select && !absl::StartsWith(part.name, absl::StrCat(select, "/"));
    });
    if (file.parts.empty()) {
      return Bad(name, absl::StrCat("no part ", Quote(select), "; there are ", absl::StrJoin(names, ", ")));
    }
  }
  for (const LoadPart& part : file.parts) {
    const LoadPart& first = file.parts[0];
    if (part.load.layers != first.load.layers || part.load.experts != first.load.experts) {
      return Bad(name,
                 absl::StrCat("part ", Quote(part.name), " has ", part.load.layers, " layers of ", part.load.experts,
                              " experts, ", Quote(first.name), " has ", first.load.layers, " of ", first.load.experts,
                              "; choose with FILE#PART from ", absl::StrJoin(names, ", ")));
    }
  }
  return absl::OkStatus();
}

// As errors call a part.
std::string NameOf(const LoadFile& file, const LoadPart& part) {
  if (file.name.empty() || part.name == file.name) return part.name;
  return absl::StrCat(file.name, ": part ", Quote(part.name));
}

// The parts of all files, summed into `rows` x `experts`.
absl::StatusOr<LoadMatrix> Sum(const NamedLoads& loads, int32_t rows, int32_t experts) {
  LoadMatrix sum(rows, experts);
  for (const LoadFile& file : loads.files) {
    for (const LoadPart& part : file.parts) {
      const bool fits = file.format == "routes" ? part.load.layers <= rows && part.load.experts <= experts
                                                : part.load.layers == rows && part.load.experts == experts;
      if (!fits) {
        return absl::InvalidArgumentError(absl::StrCat(NameOf(file, part), " has ", part.load.layers, " layers of ",
                                                       part.load.experts, " experts; ", rows, " of ", experts,
                                                       " are expected"));
      }
      for (int32_t l = 0; l < part.load.layers; ++l) {
        for (int32_t e = 0; e < part.load.experts; ++e) sum.layer(l)[e] += part.load.layer(l)[e];
      }
    }
  }
  return sum;
}

LoadMatrix PickRows(const LoadMatrix& from, std::span<const int32_t> rows) {
  LoadMatrix out(static_cast<int32_t>(rows.size()), from.experts);
  for (size_t l = 0; l < rows.size(); ++l) {
    const auto row = from.layer(rows[l]);
    std::copy(row.begin(), row.end(), out.layer(static_cast<int32_t>(l)).begin());
  }
  return out;
}

// Of each of `rows`: the mean over the parts that know it, by their tokens there; empty where none does.
std::vector<double> Burstiness(const NamedLoads& loads, std::span<const int32_t> rows) {
  std::vector<double> sum(rows.size());
  std::vector<double> tokens(rows.size());
  bool known = false;
  for (const LoadFile& file : loads.files) {
    for (const LoadPart& part : file.parts) {
      known |= !part.burstiness.empty();
      for (size_t l = 0; l < rows.size() && !part.burstiness.empty(); ++l) {
        if (rows[l] >= part.load.layers) continue;
        const auto row = part.load.layer(rows[l]);
        const double weight = std::accumulate(row.begin(), row.end(), 0.0);
        sum[l] += weight * part.burstiness[rows[l]];
        tokens[l] += weight;
      }
    }
  }
  if (!known) return {};
  for (size_t l = 0; l < sum.size(); ++l) sum[l] = tokens[l] > 0 ? sum[l] / tokens[l] : 0;
  return sum;
}

}  // namespace

absl::StatusOr<std::string> Gunzip(std::string_view bytes, std::string_view file_name) {
  const std::string name(file_name);
  z_stream stream{};
  // 15 bits of window, 16: gzip.
  if (inflateInit2(&stream, 15 + 16) != Z_OK) return absl::ResourceExhaustedError(absl::StrCat(name, ": no memory"));
  std::string out;
  std::string chunk(1 << 16, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(std::min<size_t>(bytes.size(), kMaxLoadBytes));
  int result = Z_OK;
  while (result == Z_OK && static_cast<int64_t>(out.size()) <= kMaxLoadBytes) {
    stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
    stream.avail_out = static_cast<uInt>(chunk.size());
    result = inflate(&stream, Z_NO_FLUSH);
    out.append(chunk.data(), chunk.size() - stream.avail_out);
    // A file may be several gzip members end to end, and be filled up with zeros behind the last.
    const std::string_view rest(reinterpret_cast<const char*>(stream.next_in), stream.avail_in);
    if (result == Z_STREAM_END && rest.find_first_not_of('\0') != std::string_view::npos) {
      result = inflateReset(&stream);
    }
  }
  inflateEnd(&stream);
  if (static_cast<int64_t>(out.size()) > kMaxLoadBytes) {
    return Bad(name, absl::StrCat("more than ", kMaxLoadBytes, " bytes once decompressed; that is the limit"));
  }
  if (result != Z_STREAM_END)
    return Bad(name, absl::StrCat("gzip data is damaged or cut after ", out.size(), " bytes"));
  return out;
}

absl::StatusOr<std::string> ReadBytes(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return SystemError(path, "cannot be opened", errno);
  absl::StatusOr<std::string> bytes = ReadAll(fd, path);
  close(fd);
  if (bytes.ok() && IsGzip(*bytes)) return Gunzip(*bytes, path);
  return bytes;
}

absl::StatusOr<LoadFile> ParseLoad(std::string_view bytes, std::string_view file_name, std::string_view select) {
  const std::string name(file_name);
  std::string inflated;
  if (IsGzip(bytes)) {
    BALLAST_ASSIGN_OR_RETURN(inflated, Gunzip(bytes, name));
    bytes = inflated;
  }
  bytes = WithoutByteOrderMark(bytes);
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return Bad(name, "is empty");
  absl::StatusOr<LoadFile> file;
  if (bytes.substr(0, 2) == "PK") {
    file = internal::ParseTorchLoad(bytes, name);
  } else if (bytes[0] == '\x80') {
    return Bad(name,
               "a pickle outside of an archive (torch before 1.6, or pickle itself); save it with torch.save anew");
  } else if (bytes[first] == '{' || bytes[first] == '[') {
    file = internal::ParseJsonLoad(bytes, name);
  } else {
    file = internal::ParseCsvLoad(bytes, name);
  }
  if (!file.ok()) return file;
  file->name = ToUtf8(name);
  BALLAST_RETURN_IF_ERROR(Select(std::string(select), name, *file));
  return file;
}

std::string ToUtf8(std::string_view text) {
  return Json::parse(Json(std::string(text)).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

std::string_view WithoutByteOrderMark(std::string_view bytes) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (bytes.substr(0, kByteOrderMark.size()) == kByteOrderMark) bytes.remove_prefix(kByteOrderMark.size());
  return bytes;
}

std::pair<std::string, std::optional<std::string>> SplitPart(const std::string& path) {
  const size_t hash = path.rfind('#');
  if (hash == std::string::npos || access(path.c_str(), F_OK) == 0) return {path, std::nullopt};
  // A part may have a '/' (MODEL/DOMAIN); a folder with a '#' in its name is none.
  const size_t slash = path.rfind('/');
  if (slash != std::string::npos && slash > hash && access(path.substr(0, slash).c_str(), F_OK) == 0) {
    return {path, std::nullopt};
  }
  return {path.substr(0, hash), path.substr(hash + 1)};
}

absl::StatusOr<LoadFile> ReadLoad(const std::string& path) {
  const auto [file, part] = SplitPart(path);
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(file));
  return ParseLoad(bytes, file, part.value_or(""));
}

absl::StatusOr<LoadSet> MakeLoadSet(std::span<const NamedLoads> loads) {
  LoadSet set;
  int32_t experts = 0;
  for (const NamedLoads& named : loads) {
    for (const LoadFile& file : named.files) {
      set.rows = std::max(set.rows, file.parts[0].load.layers);
      experts = std::max(experts, file.parts[0].load.experts);
    }
  }
  if (set.rows == 0) return absl::InvalidArgumentError("no load was given");
  std::vector<LoadMatrix> whole;
  for (const NamedLoads& named : loads) {
    BALLAST_ASSIGN_OR_RETURN(LoadMatrix sum, Sum(named, set.rows, experts));
    whole.push_back(std::move(sum));
  }
  for (int32_t l = 0; l < set.rows; ++l) {
    const bool used = std::any_of(whole.begin(), whole.end(), [&](const LoadMatrix& load) {
      const auto row = load.layer(l);
      return std::any_of(row.begin(), row.end(), [](double t) { return t > 0; });
    });
    if (used) set.row_of_layer.push_back(l);
  }
  if (set.row_of_layer.empty()) {
    for (int32_t l = 0; l < set.rows; ++l) set.row_of_layer.push_back(l);
  }
  for (size_t i = 0; i < loads.size(); ++i) {
    set.scenarios.push_back(
        {loads[i].name, 1, PickRows(whole[i], set.row_of_layer), Burstiness(loads[i], set.row_of_layer)});
  }
  return set;
}

absl::StatusOr<std::vector<LoadPart>> SumParts(const NamedLoads& loads) {
  int32_t rows = 0;
  int32_t experts = 0;
  // Files that do not name their parts are called by their own names; together they are one.
  std::vector<std::pair<std::string, NamedLoads>> named;
  for (const LoadFile& file : loads.files) {
    rows = std::max(rows, file.parts[0].load.layers);
    experts = std::max(experts, file.parts[0].load.experts);
    const bool names = file.format == "ballast" || file.format == "counts" || file.format == "model-counts";
    for (const LoadPart& part : file.parts) {
      const std::string& name = names ? part.name : loads.name;
      auto found = std::find_if(named.begin(), named.end(), [&](const auto& entry) { return entry.first == name; });
      if (found == named.end()) found = named.insert(named.end(), {name, NamedLoads{name, {}}});
      found->second.files.push_back({file.format, {part}, {}, file.name});
    }
  }
  std::vector<LoadPart> parts;
  for (const auto& [name, files] : named) {
    BALLAST_ASSIGN_OR_RETURN(LoadMatrix sum, Sum(files, rows, experts));
    parts.push_back({name, std::move(sum)});
  }
  return parts;
}

absl::StatusOr<Scenario> OntoLayers(const NamedLoads& loads, int32_t rows, std::span<const int32_t> row_of_layer,
                                    int32_t experts) {
  BALLAST_ASSIGN_OR_RETURN(const LoadMatrix sum, Sum(loads, rows, experts));
  for (const LoadFile& file : loads.files) {
    for (const LoadPart& part : file.parts) {
      for (int32_t row = 0; row < part.load.layers; ++row) {
        if (std::find(row_of_layer.begin(), row_of_layer.end(), row) != row_of_layer.end()) continue;
        const auto tokens = part.load.layer(row);
        const auto some = std::find_if(tokens.begin(), tokens.end(), [](double t) { return t > 0; });
        if (some == tokens.end()) continue;
        return absl::InvalidArgumentError(absl::StrCat(NameOf(file, part), ": row ", row, " expert ",
                                                       some - tokens.begin(), ": ", *some,
                                                       " tokens; the plan takes that row for dense and places none of "
                                                       "its experts"));
      }
    }
  }
  return Scenario{loads.name, 1, PickRows(sum, row_of_layer)};
}

std::string FormatLoad(std::span<const LoadPart> parts) {
  std::string out = "{\"format\": \"ballast.load/v1\",\n \"parts\": [";
  for (size_t i = 0; i < parts.size(); ++i) {
    absl::StrAppend(&out, i == 0 ? "\n" : ",\n", "  {\"name\": ", Json(parts[i].name).dump(), ", \"tokens\": [");
    for (int32_t l = 0; l < parts[i].load.layers; ++l) {
      const auto row = parts[i].load.layer(l);
      absl::StrAppend(&out, l == 0 ? "\n" : ",\n", "   ", Json(std::vector<double>(row.begin(), row.end())).dump());
    }
    out += "]}";
  }
  out += "]}\n";
  return out;
}

}  // namespace ballast
