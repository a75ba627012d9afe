#include "controller/formats/trace_file.h"

#include <zlib.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

absl::Status WantRoutes(const LoadFile& file) {
  if (file.routes.top_k > 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("a ", file.format, " file says how many tokens experts got, not what each token chose"));
}

}  // namespace

absl::StatusOr<std::string> FormatRoutesCsv(const LoadFile& file) {
  if (absl::Status status = WantRoutes(file); !status.ok()) return status;
  const RouteTrace& routes = file.routes;
  std::string out = "layer,sample,token";
  for (int32_t k = 0; k < routes.top_k; ++k) absl::StrAppend(&out, ",e", k);
  out += "\n";
  for (size_t l = 0; l < routes.experts.size(); ++l) {
    for (size_t t = 0; t < routes.samples[l].size(); ++t) {
      absl::StrAppend(&out, l, ",", routes.samples[l][t], ",", routes.tokens[l][t]);
      for (int32_t k = 0; k < routes.top_k; ++k) absl::StrAppend(&out, ",", routes.experts[l][t * routes.top_k + k]);
      out += "\n";
    }
  }
  return out;
}

absl::StatusOr<std::string> FormatTrace(const LoadFile& file) {
  if (absl::Status status = WantRoutes(file); !status.ok()) return status;
  const RouteTrace& routes = file.routes;
  std::string out =
      absl::StrCat("{\"format\": \"ballast.trace/v1\", \"rows\": ", file.parts[0].load.layers,
                   ", \"experts\": ", file.parts[0].load.experts, ", \"top_k\": ", routes.top_k, ",\n \"layers\": [");
  bool first = true;
  for (size_t l = 0; l < routes.experts.size(); ++l) {
    if (routes.samples[l].empty()) continue;
    absl::StrAppend(&out, first ? "\n" : ",\n", "  {\"row\": ", l, ", \"tokens\": [");
    first = false;
    for (size_t t = 0; t < routes.samples[l].size(); ++t) {
      absl::StrAppend(&out, t == 0 ? "\n" : ",\n", "   [", routes.samples[l][t], ",", routes.tokens[l][t]);
      for (int32_t k = 0; k < routes.top_k; ++k) absl::StrAppend(&out, ",", routes.experts[l][t * routes.top_k + k]);
      out += "]";
    }
    out += "]}";
  }
  out += "]}\n";
  return out;
}

std::string Gzip(std::string_view bytes) {
  z_stream stream{};
  // 15 bits of window, 16: gzip.
  int result = deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  BALLAST_CHECK(result == Z_OK) << result;
  std::string out;
  std::string chunk(1 << 16, '\0');
  // zlib counts what is left in 32 bits.
  constexpr size_t kAtOnce = size_t{1} << 30;
  do {
    const std::string_view piece = bytes.substr(0, kAtOnce);
    bytes.remove_prefix(piece.size());
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(piece.data()));
    stream.avail_in = static_cast<uInt>(piece.size());
    do {
      stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
      stream.avail_out = static_cast<uInt>(chunk.size());
      result = deflate(&stream, bytes.empty() ? Z_FINISH : Z_NO_FLUSH);
      out.append(chunk.data(), chunk.size() - stream.avail_out);
    } while (stream.avail_out == 0);
  } while (!bytes.empty());
  BALLAST_CHECK(result == Z_STREAM_END) << result;
  deflateEnd(&stream);
  return out;
}

}  // namespace ballast
