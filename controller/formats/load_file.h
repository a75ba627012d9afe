// Files of expert loads, recognised from their content:
//
//   ballast         {"format": "ballast.load/v1", ...}, see docs/schemas/load.v1.schema.json
//   trace           {"format": "ballast.trace/v1", ...}, see docs/schemas/trace.v1.schema.json
//   sglang          {"logical_count": [layers][experts] or [steps][layers][experts]}, SGLang's expert distribution
//                   recorder, as JSON or as it dumps it (.pt)
//   sglang-records  the same recorder's dumps (.pt) pass by pass or token by token
//   routes          csv with the header layer,sample,token,e0,e1,...: each token's experts
//   counts          csv with the header dataset,iteration,layer,e0,...: tokens by expert
//   model-counts    {MODEL: {"expert_counts": {DOMAIN: [layers][experts]}}}
//
// Each of them may be gzipped. Parsing is pure and safe on any bytes; only Read* touch files.
#ifndef BALLAST_CONTROLLER_FORMATS_LOAD_FILE_H_
#define BALLAST_CONTROLLER_FORMATS_LOAD_FILE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/load.h"

namespace ballast {

// One named part of a file: a dataset, a task, a domain. `load` has a layer for every row of the file; rows of dense
// layers are zero and keep their place.
struct LoadPart {
  std::string name;
  LoadMatrix load;
  // [rows] how bursty its steps are (Scenario::burstiness), where the file has them one by one; else empty.
  std::vector<double> burstiness;
};

// What tokens chose, where the file says it.
struct RouteTrace {
  int32_t top_k = 0;
  // [rows]: [tokens][top_k] experts, in the order of the file. Rows may differ in tokens.
  std::vector<std::vector<int32_t>> experts;
  // [rows]: [tokens] the sample that the token belongs to, and the token's number in it or in the file.
  std::vector<std::vector<int64_t>> samples;
  std::vector<std::vector<int64_t>> tokens;
};

struct LoadFile {
  std::string format;
  // At least one, of one shape, names distinct.
  std::vector<LoadPart> parts;
  RouteTrace routes;
  // What it was read from, for errors.
  std::string name;
};

// Limits on what is read.
constexpr int64_t kMaxLoadRows = 4096;
constexpr int64_t kMaxLoadExperts = 65536;
constexpr int64_t kMaxLoadCells = int64_t{1} << 26;
constexpr int32_t kMaxRoutedExperts = 1024;
constexpr int64_t kMaxLoadBytes = int64_t{1} << 31;

// `name` is used in errors, and names the parts of files that do not name them. `select`, if not empty, keeps the part
// of that name, or those whose names begin with it and '/'. InvalidArgument names the file, the row (line, or place in
// the array) and the limit.
absl::StatusOr<LoadFile> ParseLoad(std::string_view bytes, std::string_view name, std::string_view select = "");

// `text` with U+FFFD in place of what is no UTF-8: csv and file names can be any bytes, JSON cannot.
std::string ToUtf8(std::string_view text);

// Without what some editors and spreadsheets put first.
std::string_view WithoutByteOrderMark(std::string_view bytes);

// PATH#PART in two; PATH alone where it has no '#', or where a file has the whole as its name.
std::pair<std::string, std::optional<std::string>> SplitPart(const std::string& path);

// Reads PATH, or PATH#SELECT.
absl::StatusOr<LoadFile> ReadLoad(const std::string& path);

// A whole file, decompressed if it is gzipped.
//   NotFound          there is none.
//   PermissionDenied  it may not be read.
//   InvalidArgument   a folder, damaged gzip, or more than kMaxLoadBytes.
//   Unavailable       any other error of the system, of which the message has the words.
absl::StatusOr<std::string> ReadBytes(const std::string& path);
absl::StatusOr<std::string> Gunzip(std::string_view bytes, std::string_view name);

// Loads ready to plan with: all of one shape, without the rows that are zero in every one of them (dense layers).
struct LoadSet {
  std::vector<Scenario> scenarios;
  // Rows of the files, and which of them each layer of the scenarios is. All rows where all are zero.
  int32_t rows = 0;
  std::vector<int32_t> row_of_layer;
};

// One scenario a list of files: their parts, summed; of how bursty they are the mean over those that know it, by
// tokens. Names by scenario; files of one shape, except that routes, which show only what was used, grow to the
// largest. InvalidArgument names the files that differ.
struct NamedLoads {
  std::string name;
  std::vector<LoadFile> files;
};
absl::StatusOr<LoadSet> MakeLoadSet(std::span<const NamedLoads> loads);

// The files as one: parts of one name are one, in the order they come in. InvalidArgument where shapes differ, by the
// same rule.
absl::StatusOr<std::vector<LoadPart>> SumParts(const NamedLoads& loads);

// The same onto layers that are known: row_of_layer[l] of the files becomes layer l. InvalidArgument where the shapes
// do not fit, or another row has tokens: it names file, row and expert.
absl::StatusOr<Scenario> OntoLayers(const NamedLoads& loads, int32_t rows, std::span<const int32_t> row_of_layer,
                                    int32_t experts);

// Ballast's own format.
std::string FormatLoad(std::span<const LoadPart> parts);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_LOAD_FILE_H_
