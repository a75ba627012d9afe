// A layer's live replicas and what its ranks tell each other, as the kernels of a GPU's MoE layer read and write them.
// Pure: where words lie, and what they are.
#ifndef BALLAST_WORKER_MOE_DEVICE_TABLE_H_
#define BALLAST_WORKER_MOE_DEVICE_TABLE_H_

#include <cstdint>
#include <span>

namespace ballast {

struct DispatchTable;

// Where the parts of a layer's table begin, in words of 32 bits. Every layer's has room for every expert on every rank,
// so that tables stay where they are from one placement to the next. Replica numbers are DeviceExchange's: rank *
// experts + group, the group being the place of the expert among the rank's of the layer, ascending.
struct DeviceTableLayout {
  int begin = 0;     // [experts + 1], as DispatchTable
  int number = 0;    // [replicas]
  int rank = 0;      // [replicas]
  int weight = 0;    // [replicas], unsigned
  int group_of = 0;  // [experts], on the table's own rank; -1: no replica there
  int words = 0;
};
DeviceTableLayout LayOutDeviceTable(int experts, int ranks);

// `words` [layout.words] of the rank `own_rank`. REQUIRES: `table` names ranks below `ranks`, an expert's but once.
void FillDeviceTable(const DispatchTable& table, int ranks, int own_rank, std::span<int32_t> words);

// What each rank tells the others with a layer's rows.
struct DeviceNotesLayout {
  int counts = 0;  // [experts]: its pairs, before a replica is chosen for them
  int pairs = 0;   // [ranks]: how many of them go where
  int rows = 0;    // [ranks]: and with how many rows
  // kDispatch* bits of wire.h; nanoseconds that a pair took its experts, and that exchanging counts took it, when that
  // was last measured.
  int flags = 0;
  int nanoseconds_per_pair = 0;
  int exchange_nanoseconds = 0;
  int words = 0;
};
DeviceNotesLayout LayOutDeviceNotes(int experts, int ranks);

// What a step tells the kernels, [kStepWords].
enum StepWord { kStepRows, kStepPairs, kStepRotation, kStepFlags, kStepPerPair, kStepExchange, kStepWords };

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_DEVICE_TABLE_H_
