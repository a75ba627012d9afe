/* The planner as a C library: expert placements in the form of DeepSeek's EPLB (github.com/deepseek-ai/EPLB).
 *
 *   ballast_planner_request request = {sizeof request};
 *   request.num_layers = 58; ... request.weight = loads;
 *   if (ballast_planner_rebalance(&request, phy2log, rank, logcnt, NULL) != BALLAST_PLANNER_OK)
 *     fprintf(stderr, "%s\n", ballast_planner_last_error());
 *
 * Words are EPLB's: a logical expert is an expert of the model, a physical expert one replica of it. Physical expert p
 * of a layer is a slot of GPU p / (num_replicas / num_gpus); node n has the GPUs n * num_gpus / num_nodes and on.
 *
 * Pure: the same request gives the same arrays, no clock, no files, no threads; work is bounded by the request. Any
 * function may be called from any thread at any time; the only state is the calling thread's last error. No function
 * throws, keeps a pointer, or writes to an output unless it returns BALLAST_PLANNER_OK.
 *
 * Stable: functions and fields are added, never changed. A program that was built against this header works with every
 * library whose ballast_planner_abi_version() is at least BALLAST_PLANNER_ABI_VERSION.
 */
#ifndef BALLAST_CONTROLLER_CAPI_BALLAST_PLANNER_H_
#define BALLAST_CONTROLLER_CAPI_BALLAST_PLANNER_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define BALLAST_PLANNER_API __attribute__((visibility("default")))
#else
#define BALLAST_PLANNER_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define BALLAST_PLANNER_ABI_VERSION 1

/* What functions return. */
enum {
  BALLAST_PLANNER_OK = 0,
  /* The request breaks a rule that is stated here; the last error names the field, its value and the limit. */
  BALLAST_PLANNER_INVALID_ARGUMENT = 1,
  /* Memory ran out. */
  BALLAST_PLANNER_OUT_OF_MEMORY = 2,
  /* A fault of the library. */
  BALLAST_PLANNER_INTERNAL = 3
};

/* ballast_planner_request.policy */
enum {
  /* Ballast's own. With equal split no layer is less level than EPLB's. A GPU holds an expert twice only where it has
   * more slots than there are experts to put there, or, with equal split, where that is more level. */
  BALLAST_PLANNER_COST_AWARE = 0,
  /* EPLB as published, to the bit: float arithmetic, the published order among equals. */
  BALLAST_PLANNER_EPLB = 1
};

/* ballast_planner_request.split: what the engine does with the tokens of an expert that has several replicas. */
enum {
  /* As many to each. */
  BALLAST_PLANNER_EQUAL_SPLIT = 0,
  /* As the plan's shares say. The cost-aware placement is then exactly level wherever a node's logical experts are at
   * most its GPUs times (slots - 1). */
  BALLAST_PLANNER_SHARES = 1
};

/* Set struct_size and leave what is not needed 0. */
typedef struct ballast_planner_request {
  /* sizeof(ballast_planner_request). A larger struct, of a later header, is accepted as long as what this library does
   * not know is 0. */
  size_t struct_size;
  int32_t num_layers;  /* at least 1 */
  int32_t num_experts; /* logical experts of a layer, at least 1 */
  /* Physical experts of a layer: at least num_experts, a multiple of num_gpus. num_layers * num_replicas is at most
   * 2^26. */
  int32_t num_replicas;
  /* Expert groups, for models whose routing is limited to few of them; 1 where there are none. When num_nodes divides
   * num_groups, every group stays whole on a node; num_groups must then divide num_experts and num_nodes num_gpus.
   * Otherwise groups are ignored, and EPLB ignores nodes. All three at least 1. */
  int32_t num_groups;
  int32_t num_nodes;
  int32_t num_gpus;
  /* [num_layers][num_experts] tokens: finite, at least 0, at most 1e18. */
  const double* weight;
  int32_t policy;
  int32_t split;
  /* Changes that the search tries in a layer where it searches (cost-aware with equal split); 0: the default, 200,000.
   * At most 10^9. */
  int64_t proposals;
  /* [num_layers][num_replicas] the phy2log in force, -1: an empty slot; or NULL. Experts that stay on their GPU keep
   * their slots. Cost-aware also chooses which GPU becomes which such that most replicas stay; EPLB does not. */
  const int64_t* previous;
} ballast_planner_request;

/* Of the library, to be compared with BALLAST_PLANNER_ABI_VERSION. */
BALLAST_PLANNER_API int32_t ballast_planner_abi_version(void);

/* Of the tree it was built from, "0.1.0". */
BALLAST_PLANNER_API const char* ballast_planner_version(void);

/* What the last function of this library that failed on this thread found wrong, "" if none failed. Valid until the
 * thread's next call that fails. */
BALLAST_PLANNER_API const char* ballast_planner_last_error(void);

/* Plans. Every output but phy2log may be NULL.
 *
 * phy2log [num_layers][num_replicas]: each physical expert's logical expert.
 * rank [num_layers][num_replicas]: which replica of its logical expert it is, from 0: the order in log2phy.
 * logcnt [num_layers][num_experts]: replicas of each logical expert, at least 1.
 * shares [num_layers][num_replicas]: the part of its logical expert's tokens that each physical expert should get; they
 * sum to 1 for a logical expert. With BALLAST_PLANNER_EQUAL_SPLIT all are alike.
 */
BALLAST_PLANNER_API int32_t ballast_planner_rebalance(const ballast_planner_request* request, int64_t* phy2log,
                                                      int64_t* rank, int64_t* logcnt, double* shares);

/* The third array of EPLB: log2phy [num_layers][num_experts][width], the physical experts of each logical one by rank,
 * then -1. `width` is at least the largest count. `phy2log` may be any map with entries -1 (left out) to num_experts -
 * 1; `rank` is as ballast_planner_rebalance gives it, or NULL: physical experts in ascending order. */
BALLAST_PLANNER_API int32_t ballast_planner_log2phy(int32_t num_layers, int32_t num_experts, int32_t num_replicas,
                                                    const int64_t* phy2log, const int64_t* rank, int32_t width,
                                                    int64_t* log2phy);

/* Reorders every GPU's slots of `phy2log` [num_layers][num_replicas], in place, so that what the GPU held in `previous`
 * stays in its slot; the rest fills the other slots in its order. -1 is an empty slot in either. */
BALLAST_PLANNER_API int32_t ballast_planner_keep_slots(int32_t num_layers, int32_t num_replicas, int32_t num_gpus,
                                                       const int64_t* previous, int64_t* phy2log);

/* The shares that make a placement, whatever made it, as level as it can be under `weight`: shares [num_layers]
 * [num_replicas] as for ballast_planner_rebalance. `phy2log` has every logical expert in every layer; -1 is an empty
 * slot, whose share is 0. Exact for the proportions of `weight` rounded to 2^-40. */
BALLAST_PLANNER_API int32_t ballast_planner_solve_shares(int32_t num_layers, int32_t num_experts, int32_t num_replicas,
                                                         int32_t num_gpus, const double* weight, const int64_t* phy2log,
                                                         double* shares);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif  // BALLAST_CONTROLLER_CAPI_BALLAST_PLANNER_H_
