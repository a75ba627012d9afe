// How many workers a layer's tokens visit, and how loaded these are: bits for tokens, so that a search can ask about
// every change.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_COVER_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_COVER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "controller/planner/grouping/routes.h"
#include "controller/planner/packs.h"

namespace ballast {

// Where one layer's replicas are, and which of them a token takes that visits none of their workers anyway.
struct Assignment {
  // Tokens are parted into as many classes, like the workers they are at home on.
  static constexpr int32_t kClasses = 4;
  struct Expert {
    // Workers, distinct, at least one.
    absl::InlinedVector<int32_t, 4> workers;
    // [classes] one of the workers.
    int32_t aim[kClasses] = {};
    friend bool operator==(const Expert&, const Expert&) = default;
  };
  std::vector<Expert> experts;
  friend bool operator==(const Assignment&, const Assignment&) = default;
};

// Every class takes the next of an expert's workers.
Assignment Assign(const Packs& packs, int32_t experts);

// The rule: a token's experts with one replica come first, the others by replicas and number. One of these goes to the
// first of its workers that the token visits already, else to the one that its class aims at, which it then visits.
// That is what dispatch (quotas.h) does when shares are those that come out of the rule.
//
// Tokens are bits of 256-bit blocks; the tokens of every expert are kept apart from the others a second time, so that a
// change is judged by the tokens it concerns. Memory: experts^2 blocks of 32 bytes for every 256 tokens of an expert
// and task. One thread at a time.
class Cover {
 public:
  // `layer` is read in the constructor alone.
  Cover(const LayerRoutes& layer, int32_t workers);

  int32_t experts() const { return experts_; }
  int32_t workers() const { return workers_; }
  int32_t tasks() const { return tasks_; }
  // Tokens with at least one expert; pairs.
  std::span<const int64_t> tokens() const { return tokens_; }
  std::span<const int64_t> pairs() const { return pairs_; }
  // Tokens of `task` that choose the expert.
  int64_t Count(int32_t expert, int32_t task) const { return count_[expert * tasks_ + task]; }

  // An assignment as the evaluation wants it.
  struct Program {
    std::vector<int32_t> single_begin;  // [workers + 1]
    std::vector<int32_t> single;        // experts with one replica, by worker
    struct Shared {
      int32_t expert = 0;
      int32_t begin = 0;  // into worker and aim
      int32_t end = 0;
    };
    std::vector<Shared> shared;  // experts with more, in the order of the rule
    std::vector<int32_t> worker;
    std::vector<uint64_t> aim;  // the bits of the classes that aim there
  };
  void Compile(const Assignment& assignment, Program& program) const;

  // Adds, times `sign`, over the tokens that choose `of` (kAll: over all) but not `without` (kNone: any):
  // visits [tasks][workers] the tokens that visit each worker; pairs [tasks][workers] the pairs of experts with several
  // replicas that go there. Those of experts with one replica follow from Count.
  static constexpr int32_t kAll = -1;
  static constexpr int32_t kNone = -1;
  void Evaluate(const Program& program, int32_t of, int32_t without, int64_t sign, std::span<int64_t> visits,
                std::span<int64_t> pairs) const;

  // [tasks][replicas in the program's order] the pairs of experts with several replicas that go to each of them.
  std::vector<int64_t> Flows(const Program& program) const;

  // 256-token blocks of an expert's tokens: what an evaluation costs.
  int64_t Blocks(int32_t of) const;

 private:
  // 256 tokens, or the counts of four words of them.
  struct alignas(32) Bits {
    uint64_t words[4] = {};
    int64_t Sum() const { return static_cast<int64_t>(words[0] + words[1] + words[2] + words[3]); }
  };
  struct List {
    int64_t begin = 0;  // blocks
    int64_t end = 0;
  };
  template <typename Done>
  void Walk(const Program& program, int32_t of, int32_t without, const Done& done) const;
  void AddList(const LayerRoutes& layer, int32_t of);

  int32_t experts_;
  int32_t workers_;
  int32_t tasks_;
  std::vector<int64_t> tokens_;
  std::vector<int64_t> pairs_;
  std::vector<int64_t> count_;       // [experts][tasks]
  std::vector<List> lists_;          // [experts], then all tokens
  std::vector<int32_t> block_task_;  // [blocks]
  std::vector<Bits> bits_;           // [blocks][experts]
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_COVER_H_
