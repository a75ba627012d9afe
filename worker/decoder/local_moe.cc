#include "worker/decoder/local_moe.h"

#include <algorithm>

#include "kernels/router.h"
#include "proto/base/status_macros.h"

namespace ballast {

LocalMoe::LocalMoe(const Decoder& decoder, ThreadPool& pool)
    : decoder_(decoder), pool_(pool), rule_(decoder.router_rule()) {}

absl::StatusOr<std::unique_ptr<LocalMoe>> LocalMoe::Create(const Checkpoint& checkpoint, const Decoder& decoder,
                                                           ThreadPool& pool) {
  std::unique_ptr<LocalMoe> moe(new LocalMoe(decoder, pool));
  const ModelConfig& config = checkpoint.config();
  moe->expert_elements_ = checkpoint.expert_bytes() / sizeof(uint16_t);
  moe->weights_.resize(moe->expert_elements_ * config.num_moe_layers() * config.num_experts);
  std::span<std::byte> left = std::as_writable_bytes(std::span(moe->weights_));
  for (int32_t layer = 0; layer < config.num_moe_layers(); ++layer) {
    for (int32_t expert = 0; expert < config.num_experts; ++expert) {
      BALLAST_RETURN_IF_ERROR(checkpoint.ReadExpert({layer, expert}, left.first(checkpoint.expert_bytes())));
      left = left.subspan(checkpoint.expert_bytes());
    }
  }
  const size_t rows = decoder.max_rows(), pairs = rows * moe->rule_.top_k;
  moe->logits_.resize(rows * config.num_experts);
  moe->route_weights_.resize(pairs);
  moe->ids_.resize(pairs);
  moe->order_.resize(pairs);
  moe->place_.resize(pairs);
  moe->rows_.resize(pairs);
  moe->outputs_.resize(pairs * config.hidden_size);
  moe->begin_.resize(config.num_experts + 1);
  moe->tasks_.resize(config.num_experts);
  moe->terms_.resize(moe->rule_.top_k);
  return moe;
}

absl::Status LocalMoe::Run(int moe_layer, const float* hidden, int rows, float* out) {
  const int width = decoder_.config().hidden_size, k = rule_.top_k;
  const size_t pairs = static_cast<size_t>(rows) * k;
  RouteTokens(rule_, hidden, decoder_.router_weights(moe_layer), rows, width, logits_.data(), ids_.data(),
              route_weights_.data(), pool_);
  if (choose_) {
    choose_(moe_layer, std::span(logits_).first(static_cast<size_t>(rows) * rule_.num_experts),
            std::span(ids_).first(pairs), std::span(route_weights_).first(pairs));
  }
  const std::span<const int32_t> ids = std::span(ids_).first(pairs);
  GroupByExpert(ids, rule_.num_experts, begin_, std::span(order_).first(pairs));
  for (size_t i = 0; i < pairs; ++i) {
    rows_[i] = hidden + static_cast<size_t>(order_[i] / k) * width;
    place_[order_[i]] = static_cast<int32_t>(i);
  }
  for (int e = 0; e < rule_.num_experts; ++e) {
    const size_t first = begin_[e], count = begin_[e + 1] - begin_[e];
    tasks_[e] = {
        .weights = weights_.data() + (static_cast<size_t>(moe_layer) * rule_.num_experts + e) * expert_elements_,
        .rows = std::span(rows_).subspan(first, count),
        .out = outputs_.data() + first * width,
    };
  }
  RunExperts(tasks_, width, decoder_.config().expert_intermediate_size, Activation::kSwiGlu, pool_);
  for (int row = 0; row < rows; ++row) {
    // Pairs lie in the order of experts, so a row's are by ascending expert id when sorted by their place.
    int32_t* places = place_.data() + static_cast<size_t>(row) * k;
    std::sort(places, places + k);
    for (int j = 0; j < k; ++j) {
      terms_[j] = {outputs_.data() + static_cast<size_t>(places[j]) * width, route_weights_[order_[places[j]]]};
    }
    CombineRows(std::span(terms_), width, out + static_cast<size_t>(row) * width);
  }
  if (trace_) {
    const size_t elements = static_cast<size_t>(rows) * width;
    trace_({
        .moe_layer = moe_layer,
        .rows = rows,
        .hidden = {hidden, elements},
        .router_logits = std::span(logits_).first(static_cast<size_t>(rows) * rule_.num_experts),
        .ids = ids,
        .weights = std::span(route_weights_).first(pairs),
        .output = {out, elements},
    });
  }
  return absl::OkStatus();
}

}  // namespace ballast
