#include "controller/capi/ballast_planner.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "controller/capi/physical.h"
#include "proto/base/status_macros.h"
#include "proto/base/version.h"

namespace ballast {
namespace {

// The library's only state: what went wrong last, for its own thread alone.
std::string& LastError() {
  thread_local std::string error;
  return error;
}

int32_t Fail(int32_t code, std::string_view message) noexcept {
  try {
    LastError().assign(message);
  } catch (...) {
    LastError().clear();  // no memory for the message
  }
  return code;
}

// Runs a function that returns absl::Status; nothing that is thrown gets across the C boundary.
template <typename F>
int32_t Guarded(F&& f) {
  try {
    const absl::Status status = f();
    if (status.ok()) return BALLAST_PLANNER_OK;
    const std::string message(status.message().data(), status.message().size());
    return Fail(absl::IsInternal(status) ? BALLAST_PLANNER_INTERNAL : BALLAST_PLANNER_INVALID_ARGUMENT, message);
  } catch (const std::bad_alloc&) {
    return Fail(BALLAST_PLANNER_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return Fail(BALLAST_PLANNER_INTERNAL, e.what());
  } catch (...) {
    return Fail(BALLAST_PLANNER_INTERNAL, "an exception that is no std::exception");
  }
}

absl::Status NotNull(const void* pointer, const char* field) {
  if (pointer != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": NULL"));
}

// Copies what this library knows of a caller's struct.
absl::StatusOr<ballast_planner_request> ReadRequest(const ballast_planner_request* request) {
  BALLAST_RETURN_IF_ERROR(NotNull(request, "request"));
  ballast_planner_request known = {};
  if (request->struct_size < sizeof known) {
    return absl::InvalidArgumentError(
        absl::StrCat("struct_size: ", request->struct_size, "; must be at least ", sizeof known));
  }
  std::memcpy(&known, request, sizeof known);
  const auto* bytes = reinterpret_cast<const unsigned char*>(request);
  for (size_t i = sizeof known; i < request->struct_size; ++i) {
    if (bytes[i] == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("struct_size: ", request->struct_size, "; byte ", i,
                                                   " is set, but this library, ", kVersion, ", knows only ",
                                                   sizeof known));
  }
  return known;
}

size_t Product(int32_t a, int32_t b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

absl::Status RebalanceArrays(const ballast_planner_request* asked, int64_t* phy2log, int64_t* rank, int64_t* logcnt,
                             double* shares) {
  BALLAST_ASSIGN_OR_RETURN(const ballast_planner_request r, ReadRequest(asked));
  BALLAST_RETURN_IF_ERROR(NotNull(r.weight, "weight"));
  BALLAST_RETURN_IF_ERROR(NotNull(phy2log, "phy2log"));
  PhysicalRequest request;
  request.shape = {r.num_layers, r.num_experts, r.num_replicas, r.num_gpus};
  BALLAST_RETURN_IF_ERROR(Validate(request.shape));
  if (r.policy != BALLAST_PLANNER_COST_AWARE && r.policy != BALLAST_PLANNER_EPLB) {
    return absl::InvalidArgumentError(absl::StrCat("policy: ", r.policy, "; must be ", BALLAST_PLANNER_COST_AWARE,
                                                   " (cost-aware) or ", BALLAST_PLANNER_EPLB, " (EPLB)"));
  }
  if (r.split != BALLAST_PLANNER_EQUAL_SPLIT && r.split != BALLAST_PLANNER_SHARES) {
    return absl::InvalidArgumentError(absl::StrCat("split: ", r.split, "; must be ", BALLAST_PLANNER_EQUAL_SPLIT,
                                                   " (equal) or ", BALLAST_PLANNER_SHARES, " (shares)"));
  }
  request.num_groups = r.num_groups;
  request.num_nodes = r.num_nodes;
  request.policy =
      r.policy == BALLAST_PLANNER_EPLB ? PhysicalRequest::Policy::kEplb : PhysicalRequest::Policy::kCostAware;
  request.split = r.split == BALLAST_PLANNER_SHARES ? PhysicalRequest::Split::kShares : PhysicalRequest::Split::kEqual;
  request.proposals = r.proposals;
  request.weight = std::span(r.weight, Product(r.num_layers, r.num_experts));
  if (r.previous != nullptr) request.previous = std::span(r.previous, Product(r.num_layers, r.num_replicas));

  BALLAST_ASSIGN_OR_RETURN(const PhysicalPlan plan, Rebalance(request));
  if (shares != nullptr) {
    const std::vector<double> equal =
        request.split == PhysicalRequest::Split::kEqual ? EqualShares(request.shape, plan) : std::vector<double>();
    const std::vector<double>& made = equal.empty() ? plan.shares : equal;
    std::copy(made.begin(), made.end(), shares);
  }
  std::copy(plan.phy2log.begin(), plan.phy2log.end(), phy2log);
  if (rank != nullptr) std::copy(plan.rank.begin(), plan.rank.end(), rank);
  if (logcnt != nullptr) std::copy(plan.logcnt.begin(), plan.logcnt.end(), logcnt);
  return absl::OkStatus();
}

absl::Status Log2PhyArray(const PhysicalShape& shape, const int64_t* phy2log, const int64_t* rank, int32_t width,
                          int64_t* log2phy) {
  BALLAST_RETURN_IF_ERROR(NotNull(phy2log, "phy2log"));
  BALLAST_RETURN_IF_ERROR(NotNull(log2phy, "log2phy"));
  BALLAST_RETURN_IF_ERROR(Validate(shape));
  if (width < 1 || width > shape.num_replicas) {
    return absl::InvalidArgumentError(
        absl::StrCat("width: ", width, "; must lie in 1 .. num_replicas, ", shape.num_replicas));
  }
  const size_t cells = Product(shape.num_layers, shape.num_replicas);
  return LogicalToPhysical(shape, {phy2log, cells}, {rank, rank == nullptr ? 0 : cells}, width,
                           {log2phy, Product(shape.num_layers, shape.num_experts) * static_cast<size_t>(width)});
}

absl::Status KeepSlotsArray(const PhysicalShape& shape, const int64_t* previous, int64_t* phy2log) {
  BALLAST_RETURN_IF_ERROR(NotNull(previous, "previous"));
  BALLAST_RETURN_IF_ERROR(NotNull(phy2log, "phy2log"));
  BALLAST_RETURN_IF_ERROR(Validate(shape));
  for (int32_t l = 0; l < shape.num_layers; ++l) {
    const size_t first = Product(l, shape.num_replicas);
    const auto replicas = static_cast<size_t>(shape.num_replicas);
    KeepSlots(shape.num_gpus, {previous + first, replicas}, {phy2log + first, replicas}, {});
  }
  return absl::OkStatus();
}

absl::Status SharesArray(const PhysicalShape& shape, const double* weight, const int64_t* phy2log, double* shares) {
  BALLAST_RETURN_IF_ERROR(NotNull(weight, "weight"));
  BALLAST_RETURN_IF_ERROR(NotNull(phy2log, "phy2log"));
  BALLAST_RETURN_IF_ERROR(NotNull(shares, "shares"));
  BALLAST_RETURN_IF_ERROR(Validate(shape));
  BALLAST_ASSIGN_OR_RETURN(const std::vector<double> made,
                           SolvePhysicalShares(shape, {weight, Product(shape.num_layers, shape.num_experts)},
                                               {phy2log, Product(shape.num_layers, shape.num_replicas)}));
  std::copy(made.begin(), made.end(), shares);
  return absl::OkStatus();
}

}  // namespace
}  // namespace ballast

extern "C" {

int32_t ballast_planner_abi_version(void) { return BALLAST_PLANNER_ABI_VERSION; }

const char* ballast_planner_version(void) { return ballast::kVersion; }

const char* ballast_planner_last_error(void) { return ballast::LastError().c_str(); }

int32_t ballast_planner_rebalance(const ballast_planner_request* request, int64_t* phy2log, int64_t* rank,
                                  int64_t* logcnt, double* shares) {
  return ballast::Guarded([&] { return ballast::RebalanceArrays(request, phy2log, rank, logcnt, shares); });
}

int32_t ballast_planner_log2phy(int32_t num_layers, int32_t num_experts, int32_t num_replicas, const int64_t* phy2log,
                                const int64_t* rank, int32_t width, int64_t* log2phy) {
  return ballast::Guarded([&] {
    return ballast::Log2PhyArray({num_layers, num_experts, num_replicas, 1}, phy2log, rank, width, log2phy);
  });
}

int32_t ballast_planner_keep_slots(int32_t num_layers, int32_t num_replicas, int32_t num_gpus, const int64_t* previous,
                                   int64_t* phy2log) {
  return ballast::Guarded([&] {
    return ballast::KeepSlotsArray({num_layers, 1, num_replicas, num_gpus}, previous, phy2log);
  });
}

int32_t ballast_planner_solve_shares(int32_t num_layers, int32_t num_experts, int32_t num_replicas, int32_t num_gpus,
                                     const double* weight, const int64_t* phy2log, double* shares) {
  return ballast::Guarded([&] {
    return ballast::SharesArray({num_layers, num_experts, num_replicas, num_gpus}, weight, phy2log, shares);
  });
}

}  // extern "C"
