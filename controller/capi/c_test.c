/* A user of the C library, in C. */
#include <stdio.h>
#include <string.h>

#include "controller/capi/ballast_planner.h"

static int failures = 0;

static void Expect(int condition, const char* what) {
  if (condition) return;
  ++failures;
  fprintf(stderr, "failed: %s (last error: %s)\n", what, ballast_planner_last_error());
}

int main(void) {
  static const double weight[24] = {90, 132, 40,  61, 104, 165, 39,  4,   73, 56,  183, 86,
                                    20, 107, 104, 64, 19,  197, 187, 157, 172, 86, 16,  27};
  static const int64_t published[32] = {5, 6,  5, 7, 8, 4,  3, 4, 10, 9, 10, 2, 0, 1, 11, 1,
                                        7, 10, 6, 8, 6, 11, 8, 9, 2,  4, 5,  1, 5, 0, 3,  1};
  int64_t phy2log[32], rank[32], logcnt[24], log2phy[48];
  ballast_planner_request request = {sizeof(ballast_planner_request), 2, 12, 16, 4, 2, 8, 0, 0, 0, 0, 0};
  request.weight = weight;
  request.policy = BALLAST_PLANNER_EPLB;

  Expect(ballast_planner_abi_version() == BALLAST_PLANNER_ABI_VERSION, "the library has the header's version");
  Expect(strlen(ballast_planner_version()) > 0, "there is a version");
  Expect(ballast_planner_rebalance(&request, phy2log, rank, logcnt, NULL) == BALLAST_PLANNER_OK, "a plan is made");
  Expect(memcmp(phy2log, published, sizeof published) == 0, "the published example");
  Expect(ballast_planner_log2phy(2, 12, 16, phy2log, rank, 2, log2phy) == BALLAST_PLANNER_OK, "log2phy is made");
  Expect(log2phy[2] == 15 && log2phy[3] == 13 && log2phy[1] == -1, "log2phy is in the published order");
  request.num_replicas = 15;
  Expect(ballast_planner_rebalance(&request, phy2log, rank, logcnt, NULL) == BALLAST_PLANNER_INVALID_ARGUMENT,
         "15 replicas on 8 GPUs are refused");
  Expect(strcmp(ballast_planner_last_error(), "num_replicas: 15; must be a multiple of num_gpus, 8") == 0,
         "the error names field, value and limit");
  if (failures == 0) puts("passed");
  return failures != 0;
}
