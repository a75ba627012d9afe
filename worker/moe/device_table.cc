#include "worker/moe/device_table.h"

#include <algorithm>
#include <vector>

#include "proto/base/check.h"
#include "proto/placement/quotas.h"

namespace ballast {

DeviceTableLayout LayOutDeviceTable(int experts, int ranks) {
  const int replicas = experts * ranks;
  DeviceTableLayout at;
  at.number = experts + 1;
  at.rank = at.number + replicas;
  at.weight = at.rank + replicas;
  at.group_of = at.weight + replicas;
  at.words = at.group_of + experts;
  return at;
}

void FillDeviceTable(const DispatchTable& table, int ranks, int own_rank, std::span<int32_t> words) {
  const int experts = table.num_experts();
  const DeviceTableLayout at = LayOutDeviceTable(experts, ranks);
  BALLAST_CHECK(static_cast<int>(words.size()) == at.words && table.num_replicas() <= experts * ranks)
      << words.size() << " words, " << table.num_replicas() << " replicas";
  std::copy(table.begin.begin(), table.begin.end(), words.begin() + at.begin);
  std::vector<int32_t> groups(ranks, 0);
  for (int32_t e = 0; e < experts; ++e) {
    words[at.group_of + e] = -1;
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      const int32_t rank = table.rank[r];
      if (rank == own_rank) words[at.group_of + e] = groups[rank];
      words[at.number + r] = rank * experts + groups[rank]++;
      words[at.rank + r] = rank;
      words[at.weight + r] = static_cast<int32_t>(table.weight[r]);
    }
  }
}

DeviceNotesLayout LayOutDeviceNotes(int experts, int ranks) {
  DeviceNotesLayout at;
  at.pairs = experts;
  at.rows = at.pairs + ranks;
  at.flags = at.rows + ranks;
  at.nanoseconds_per_pair = at.flags + 1;
  at.exchange_nanoseconds = at.flags + 2;
  at.words = at.flags + 3;
  return at;
}

}  // namespace ballast
