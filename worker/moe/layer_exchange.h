// What the ranks of a view send each other in a layer: buffers, messages (wire.h), waits.
#ifndef BALLAST_WORKER_MOE_LAYER_EXCHANGE_H_
#define BALLAST_WORKER_MOE_LAYER_EXCHANGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/ids.h"
#include "worker/moe/dispatch_plan.h"
#include "worker/moe/wire.h"
#include "worker/step/group_view.h"
#include "worker/transport/transport.h"

namespace ballast {

// Aligned memory that is not touched before it is used: buffers are made for the worst case, which rarely comes.
class Buffer {
 public:
  static constexpr size_t kAlignment = 64;
  static size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  void Reserve(size_t bytes) {
    if (bytes <= size_) return;
    data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t(kAlignment))));
    size_ = bytes;
  }
  std::byte* data() const { return data_.get(); }
  float* floats() const { return reinterpret_cast<float*>(data_.get()); }
  size_t size() const { return size_; }

 private:
  struct Delete {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<std::byte, Delete> data_;
  size_t size_ = 0;
};

// Used by the step thread alone. A layer goes
//
//   [ExchangeCounts]  SendRows  [RowsAreHere]  ReceiveRows  SendResults  ExpectRows (of the next)  ReceiveResults
//
// Every rank exchanges each message with every other one, rows or not. Errors are those of Transport::Wait, and
// InvalidArgument for a malformed message; the step is lost then, and the view is of no use any more: Leave. Peers are
// numbered in the order they are sent to: the rank after this one first, round.
class LayerExchange {
 public:
  struct Shape {
    int num_layers = 0;
    int num_experts = 0;
    int top_k = 0;
    int hidden_size = 0;
    // Rows of a rank at most; receive buffers hold the worst case for it.
    int capacity = 0;
    // A result for every pair, instead of one for every row.
    bool result_by_pair = false;
  };
  explicit LayerExchange(const Shape& shape);

  // `transport` is the view's mesh and outlives the stay (Leave); null when the view has one member.
  void Enter(const GroupView& view, Transport* transport);
  void Leave();
  void BeginStep(StepId step, Epoch epoch, absl::Time deadline);

  int num_peers() const { return static_cast<int>(peers_.size()); }
  int rank_of(int peer) const { return peers_[peer].rank; }
  // The peer at a rank; -1: this rank itself.
  int peer_at(int rank) const { return peer_at_rank_[rank]; }

  // Tells every rank this one's counts [experts] and hands every peer's, as they come, to `take`.
  absl::Status ExchangeCounts(int layer, std::span<const int32_t> own,
                              absl::FunctionRef<void(int rank, std::span<const int32_t>)> take);

  // What goes with a layer's rows.
  struct Notes {
    uint32_t flags = 0;  // kDispatch*
    uint32_t nanoseconds_per_pair = 0;
    uint32_t exchange_nanoseconds = 0;
    // This rank's counts [experts], where the layer's dispatch messages carry them; empty where they do not.
    std::span<const int32_t> counts;
  };
  // Sends each of the `plan`'s rows, of [rows][hidden_size], to where its pairs are.
  void SendRows(int layer, const DispatchPlan& plan, const float* hidden, int rows, const Notes& notes);
  // Whether every peer's rows have come; an error if they never will.
  absl::StatusOr<bool> RowsAreHere();
  // Waits for the peers' rows. `here`: RowsAreHere has just said so. `counts`: the messages carry counts.
  absl::Status ReceiveRows(int layer, bool here, bool counts);
  // Valid until the layer's end.
  const DispatchView& rows_of(int peer) const { return peers_[peer].rows; }

  // Sends each peer what its rows have become: `fill` writes its results, in the order of wire.h.
  void SendResults(int layer, absl::FunctionRef<void(int peer, float* results)> fill);
  // Peers that have their results may go on to the next layer, or step, before this rank. `layer` is the one just run.
  void ExpectNextRows(int layer);
  absl::Status ReceiveResults(int layer, const DispatchPlan& plan);
  // The peer's results for this rank's rows. Valid until the layer's end.
  const float* results_of(int peer) const { return peers_[peer].results; }

  // Peers that a wait failed for, ascending; peers that sent a malformed message. Of the step.
  std::span<const int> late() const { return late_; }
  // The peer sent what it should not have.
  absl::Status Blame(int peer, absl::Status status);

 private:
  struct Peer {
    int rank = 0;
    std::span<std::byte> counts_in;
    std::span<std::byte> dispatch_in;  // room for the worst case
    std::span<std::byte> dispatch_out;
    std::span<std::byte> combine_in;
    std::span<std::byte> combine_out;
    RequestId counts_receive, counts_send;
    RequestId dispatch_receive, dispatch_send;
    RequestId combine_receive, combine_send;
    size_t received = 0;
    DispatchView rows;
    const float* results = nullptr;
  };

  WireContext Context(int layer, bool counts) const;
  MessageHeader Header(MessageKind kind) const;
  DispatchPreamble Preamble(int to_rank, bool counts) const;
  void ExpectRows(StepId of_step, int layer);
  absl::Status Await(RequestId Peer::*receive, std::span<std::byte> Peer::*buffer, MessageKind kind, int layer,
                     bool waited);
  absl::Status WaitFor(absl::Time deadline);
  size_t row_bytes() const { return sizeof(float) * static_cast<size_t>(shape_.hidden_size); }

  const Shape shape_;
  ViewId view_;
  int rank_ = 0;
  int ranks_ = 0;
  Transport* transport_ = nullptr;
  std::vector<Peer> peers_;
  std::vector<int> peer_at_rank_;
  Buffer counts_in_, counts_out_, dispatch_in_, dispatch_out_, combine_in_, combine_out_;

  StepId step_;
  Epoch epoch_;
  absl::Time deadline_;
  // The step whose dispatch messages are being received.
  StepId expected_step_;
  // Counts of the open layer were sent, and their buffer is not free yet.
  bool counts_sent_ = false;
  std::vector<RequestId> requests_;
  std::vector<int> late_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_LAYER_EXCHANGE_H_
