// Where everything that the ranks of a node exchange in an MoE layer lies in each rank's region of device memory. Pure.
//
// Nothing is compacted: token t of rank s has row t of s's section, in the region of every rank that it is sent to. So
// what a rank writes depends on no other rank, no counts go ahead of the rows, and one captured graph serves every
// routing. The price is the worst case's memory: ranks * capacity rows twice.
#ifndef BALLAST_WORKER_TRANSPORT_NCCL_EXCHANGE_LAYOUT_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_EXCHANGE_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ballast {

// Ranks of one node at most: a bit mask of them is one word.
inline constexpr int kMaxExchangeRanks = 32;

// Tokens of a rank in a step at most: enough for the most rows of a step with 32 choices each, a token a choice.
inline constexpr int kMaxExchangeCapacity = 1 << 21;

// The same on every rank.
struct ExchangeShape {
  int ranks = 0;
  // Tokens of a rank in a step at most, up to kMaxExchangeCapacity.
  int capacity = 0;
  // Choices of a token, at most 32.
  int top_k = 0;
  // A multiple of 8.
  int hidden_size = 0;
  // Replicas of a layer on a rank at most: replica number = rank * groups_per_rank + group, 0 <= group.
  int groups_per_rank = 0;
  // Words that each rank tells all others with a layer's rows (counts by expert, say); may be 0.
  int note_words = 0;
};

// Byte offsets within a region, each a multiple of 256. Sections are by source rank: bf16
// rows[ranks][capacity][hidden], int32 groups[ranks][capacity][top_k], f32 weights[ranks][capacity][top_k], int32
// notes[ranks][note_words], int32 tokens[ranks], uint32 arrivals[2][ranks], and, by the rank that computed them, bf16
// partials[ranks][capacity][hidden].
struct ExchangeLayout {
  size_t rows = 0;
  size_t groups = 0;
  size_t weights = 0;
  size_t notes = 0;
  size_t tokens = 0;
  size_t arrivals = 0;
  size_t partials = 0;
  // Of the whole region.
  size_t bytes = 0;
};

// InvalidArgument names the field, its value and its limits.
absl::StatusOr<ExchangeLayout> LayOutExchange(const ExchangeShape& shape);

// Blocks of an exchange's kernels on each rank, for at most `capacity` tokens, where every rank's GPU runs `most` of
// them at once. With few tokens more of them would only be in the way.
int ExchangeBlocks(int capacity, int most);

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_EXCHANGE_LAYOUT_H_
