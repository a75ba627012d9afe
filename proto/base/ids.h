// Strong integers: ids and counters that must not be mixed up.
#ifndef BALLAST_PROTO_BASE_IDS_H_
#define BALLAST_PROTO_BASE_IDS_H_

#include <compare>
#include <cstdint>
#include <functional>
#include <ostream>

namespace ballast {

// No conversion either way: construct explicitly, read with value().
template <typename Tag, typename Int>
class StrongInt {
 public:
  constexpr StrongInt() = default;
  constexpr explicit StrongInt(Int value) : value_(value) {}
  constexpr Int value() const { return value_; }
  constexpr StrongInt next() const { return StrongInt(value_ + 1); }
  friend constexpr auto operator<=>(StrongInt, StrongInt) = default;
  friend std::ostream& operator<<(std::ostream& out, StrongInt v) { return out << v.value_; }
  template <typename H>
  friend H AbslHashValue(H h, StrongInt v) {
    return H::combine(std::move(h), v.value_);
  }

 private:
  Int value_ = 0;
};

// A controller's reign; grows with every controller that takes command. Workers refuse a lower one.
using Term = StrongInt<struct TermTag, uint64_t>;
// The number of a group's placement in force; 0 is none.
using Epoch = StrongInt<struct EpochTag, uint64_t>;
// The number of a group's membership; 0 is none.
using ViewId = StrongInt<struct ViewTag, uint64_t>;
// One run of one worker process, given by the controller; grows for each worker name.
using Incarnation = StrongInt<struct IncarnationTag, uint64_t>;
// A group step, counted by the leader of a view from 1.
using StepId = StrongInt<struct StepTag, uint64_t>;
using SharesVersion = StrongInt<struct SharesTag, uint64_t>;

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_IDS_H_
