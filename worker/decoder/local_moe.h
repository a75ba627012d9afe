// MoE layers with every expert in this process: the reference that groups are compared with.
#ifndef BALLAST_WORKER_DECODER_LOCAL_MOE_H_
#define BALLAST_WORKER_DECODER_LOCAL_MOE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/experts.h"
#include "kernels/tokens.h"
#include "worker/decoder/decoder.h"
#include "worker/decoder/moe_layer.h"
#include "worker/model/checkpoint.h"

namespace ballast {

// Routes, runs all chosen experts and adds their outputs by ascending expert id, as an `exact` group does. Used by one
// thread.
class LocalMoe final : public MoeLayer {
 public:
  // What one layer of one step did; the spans are valid during the call.
  struct Trace {
    int moe_layer;
    int rows;
    std::span<const float> hidden;         // [rows][H]
    std::span<const float> router_logits;  // [rows][E]
    std::span<const int32_t> ids;          // [rows][k]
    std::span<const float> weights;        // [rows][k]
    std::span<const float> output;         // [rows][H]
  };

  // Reads every expert of the checkpoint into memory. `decoder` and `pool` must outlive the result.
  static absl::StatusOr<std::unique_ptr<LocalMoe>> Create(const Checkpoint& checkpoint, const Decoder& decoder,
                                                          ThreadPool& pool);

  absl::Status Run(int moe_layer, const float* hidden, int rows, float* out) override;

  // Called after each layer's routing with logits [rows][E] and the choices, [rows][k], which it may change: ids
  // distinct in a row. Empty: not called.
  using Choose = std::function<void(int moe_layer, std::span<const float> logits, std::span<int32_t> ids,
                                    std::span<float> weights)>;
  void set_choose(Choose choose) { choose_ = std::move(choose); }
  // Called at the end of each layer; empty: not called.
  void set_trace(std::function<void(const Trace&)> trace) { trace_ = std::move(trace); }

 private:
  LocalMoe(const Decoder& decoder, ThreadPool& pool);

  const Decoder& decoder_;
  ThreadPool& pool_;
  const RouterRule rule_;
  // [moe layer][expert][slot layout]
  std::vector<uint16_t> weights_;
  size_t expert_elements_ = 0;
  Choose choose_;
  std::function<void(const Trace&)> trace_;

  std::vector<float> logits_, route_weights_, outputs_;
  std::vector<int32_t> ids_, begin_, order_, place_;
  std::vector<const float*> rows_;
  std::vector<ExpertTask> tasks_;
  std::vector<CombineTerm> terms_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_LOCAL_MOE_H_
