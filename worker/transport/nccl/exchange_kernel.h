// What the host's half of dispatch and combine tells the device half (exchange.cu).
#ifndef BALLAST_WORKER_TRANSPORT_NCCL_EXCHANGE_KERNEL_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_EXCHANGE_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "worker/transport/nccl/exchange_layout.h"

namespace ballast::internal {

inline constexpr int kExchangeThreads = 512;

// In host memory that the device sees; one of each rank.
struct ExchangeControl {
  // The host: waits end at once, and nothing is exchanged any more.
  uint32_t abort;
  // The device: which wait for a rank ran out of time. 0: none, else 1 + ExchangeWait.
  uint32_t late[kMaxExchangeRanks];
};
enum ExchangeWait { kRowsWait = 0, kPartialsWait = 1 };

// Pointers for rank r lead to this rank's section in r's region, this rank's own region for r = rank.
struct ExchangeKernelArgs {
  int rank;
  int ranks;
  int capacity;
  int top_k;
  int hidden_size;
  int groups_per_rank;
  int note_words;
  // Of both kernels, on every rank: what a wait counts.
  int blocks;

  // The step's input.
  const void* x;
  const int32_t* num_tokens;
  const int32_t* replicas;
  const float* choice_weights;
  const int32_t* notes;
  // Null: rows stay where they are.
  void* rows_to[kMaxExchangeRanks];
  int32_t* groups_to[kMaxExchangeRanks];
  float* weights_to[kMaxExchangeRanks];
  int32_t* notes_to[kMaxExchangeRanks];
  int32_t* tokens_to[kMaxExchangeRanks];
  void* partials_to[kMaxExchangeRanks];
  // [wait]: one word for this rank at rank r, another for rank r here. Null: no signals, and no waits.
  uint32_t* arrivals_to[2][kMaxExchangeRanks];
  const uint32_t* arrivals[2];

  // This rank's region.
  const float* weights;
  const int32_t* tokens;
  const void* partials;
  // [capacity], this rank's: where its tokens went, a bit a rank.
  uint32_t* destinations;

  // The experts' output, [rows][hidden_size], and each received pair's row there.
  const void* outputs;
  const int32_t* row_of;
  void* out;

  // Layers exchanged so far; a wait has failed.
  uint32_t* step;
  uint32_t* failed;
  ExchangeControl* control;
  uint64_t wait_nanoseconds;
};

// Blocks that the current device runs of either kernel at once.
cudaError_t MostBlocks(int* blocks);

cudaError_t LaunchDispatch(const ExchangeKernelArgs& args, cudaStream_t stream);
// push: sums for other ranks; pull: waits for theirs and adds up. Both: also own sums meanwhile.
cudaError_t LaunchCombineSums(const ExchangeKernelArgs& args, bool push, bool pull, cudaStream_t stream);

}  // namespace ballast::internal

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_EXCHANGE_KERNEL_H_
