#include "worker/moe/device_mesh.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "worker/moe/wire.h"
#include "worker/transport/nccl/device_exchange.h"

namespace ballast {
namespace {

// What a member tells every other one.
struct DevicesMessage {
  MessageHeader header;
  DeviceOffer offer;
  // absl::StatusCode of what it could not do, and why.
  int32_t code = 0;
  char why[116] = {};
  // Rank 0's.
  NcclId id = {};
};

absl::Status CheckMessage(const GroupView& view, int from, const DevicesMessage& message, size_t bytes) {
  const MessageHeader& header = message.header;
  if (bytes != sizeof(message) || header.magic != kWireMagic || header.version != kWireVersion ||
      header.kind != MessageKind::kDevices || header.view != view.view.value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("message of rank ", from, ": ", bytes, " bytes, not the devices of view ", view.view.value()));
  }
  if (message.code == 0) return absl::OkStatus();
  return absl::Status(
      static_cast<absl::StatusCode>(message.code),
      absl::StrCat("rank ", from, ": ", std::string(message.why, strnlen(message.why, sizeof(message.why)))));
}

}  // namespace

absl::StatusOr<DeviceMesh> ConnectDevices(const GroupView& view, Transport& transport, std::span<std::byte> slots,
                                          int capacity, DeviceMeshBuffers& buffers, absl::Time deadline,
                                          const std::atomic<bool>& interrupted) {
  const int ranks = view.size();
  buffers.assign(sizeof(DevicesMessage) * ranks, std::byte());
  // By rank; the own one is sent.
  const std::span<DevicesMessage> messages(reinterpret_cast<DevicesMessage*>(buffers.data()), ranks);
  DevicesMessage& own = messages[view.rank];
  own = DevicesMessage{.header = {.kind = MessageKind::kDevices, .view = view.view.value()},
                       .offer = {.slot_bytes = slots.size(), .capacity = capacity}};
  const absl::StatusOr<int> blocks = MostExchangeBlocks();
  absl::Status made = blocks.status();
  if (made.ok()) {
    own.offer.exchange_blocks = *blocks;
    made = NcclLibrary::Get().status();
  }
  if (made.ok() && view.leads()) {
    const absl::StatusOr<NcclId> id = NewNcclId();
    made = id.status();
    if (id.ok()) own.id = *id;
  }
  if (!made.ok()) {
    own.code = static_cast<int32_t>(made.code());
    const std::string why(made.message());
    std::memcpy(own.why, why.data(), std::min(why.size(), sizeof(own.why)));
  }
  std::vector<RequestId> requests;
  std::vector<RequestId> receives(ranks);
  const Tag tag = MakeTag(MessageKind::kDevices, 0, 0);
  for (int r = 0; r < ranks; ++r) {
    if (r == view.rank) continue;
    receives[r] = transport.Receive(r, tag, std::as_writable_bytes(std::span(&messages[r], 1)));
    requests.push_back(receives[r]);
    requests.push_back(transport.Send(r, tag, std::as_bytes(std::span(&own, 1))));
  }
  BALLAST_RETURN_IF_ERROR(transport.Wait(requests, deadline));
  BALLAST_RETURN_IF_ERROR(made);
  std::vector<DeviceOffer> offers;
  for (int r = 0; r < ranks; ++r) {
    const size_t bytes = r == view.rank ? sizeof(own) : transport.ReceivedBytes(receives[r]);
    BALLAST_RETURN_IF_ERROR(CheckMessage(view, r, messages[r], bytes));
    offers.push_back(messages[r].offer);
  }
  DeviceMesh mesh;
  BALLAST_ASSIGN_OR_RETURN(mesh.terms, AgreeOnTerms(offers));
  BALLAST_ASSIGN_OR_RETURN(mesh.communicator,
                           NcclCommunicator::Create(messages[0].id, view.rank, ranks, deadline, &interrupted));
  if (mesh.terms.share_slots) {
    const absl::StatusOr<NcclCommunicator::Memory> shared = mesh.communicator->Share(slots, deadline);
    if (shared.ok()) {
      mesh.slots.assign(shared->peers.begin(), shared->peers.end());
    } else if (!absl::IsFailedPrecondition(shared.status())) {
      return shared.status();
    }
  }
  return mesh;
}

}  // namespace ballast
