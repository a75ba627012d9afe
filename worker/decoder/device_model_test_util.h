// A model on the GPU in one process, and comparisons, for tests.
#ifndef BALLAST_WORKER_DECODER_DEVICE_MODEL_TEST_UTIL_H_
#define BALLAST_WORKER_DECODER_DEVICE_MODEL_TEST_UTIL_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "proto/base/check.h"
#include "worker/decoder/device_decoder.h"
#include "worker/decoder/device_local_moe.h"
#include "worker/decoder/kv_cache.h"
#include "worker/decoder/sequence_runs.h"
#include "worker/model/checkpoint.h"

namespace ballast {

// A model on the GPU.
struct DeviceModel {
  DeviceModel(const std::string& dir, DeviceDecoderOptions options) {
    auto opened = Checkpoint::Open(dir);
    BALLAST_CHECK(opened.ok()) << opened.status().ToString();
    checkpoint = *std::move(opened);
    auto made = DeviceDecoder::Create(*checkpoint, options);
    BALLAST_CHECK(made.ok()) << made.status().ToString();
    decoder = *std::move(made);
    auto local = DeviceLocalMoe::Create(*checkpoint, *decoder);
    BALLAST_CHECK(local.ok()) << local.status().ToString();
    moe = *std::move(local);
    auto blocks = decoder->CreateKvCache(KvCache::BlocksFor(8192));
    BALLAST_CHECK(blocks.ok()) << blocks.status().ToString();
    cache = *std::move(blocks);
    BALLAST_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  }
  ~DeviceModel() { cudaStreamDestroy(stream); }

  int vocab() const { return decoder->config().vocab_size; }

  // Logits [tokens.size()][vocab] of one sequence, run in steps of `chunk` rows.
  std::vector<float> Logits(std::span<const int32_t> tokens, int chunk) { return Logits(tokens, chunk, *moe); }
  std::vector<float> Logits(std::span<const int32_t> tokens, int chunk, DeviceMoeLayer& layers) {
    return SequenceLogits(*cache, vocab(), tokens, chunk, forward(layers));
  }
  ForwardStep forward(DeviceMoeLayer& layers) {
    return [&](const StepInput& input, float* logits) { return decoder->Forward(input, layers, logits, stream); };
  }

  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<DeviceDecoder> decoder;
  std::unique_ptr<DeviceLocalMoe> moe;
  std::unique_ptr<KvCache> cache;
  cudaStream_t stream = nullptr;
};

// |got - wanted| / |wanted|, Euclidean.
inline double ErrorOf(const std::vector<float>& got, const std::vector<float>& wanted) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - wanted[i], 2);
    norm += std::pow(static_cast<double>(wanted[i]), 2);
  }
  return std::sqrt(difference / norm);
}

// The median over positions: near ties of the router, which random weights have many of, change single ones by more.
inline double MedianRowError(const std::vector<float>& got, const std::vector<float>& wanted, size_t width) {
  std::vector<double> errors;
  for (size_t at = 0; at < got.size(); at += width) {
    errors.push_back(
        ErrorOf({got.begin() + at, got.begin() + at + width}, {wanted.begin() + at, wanted.begin() + at + width}));
  }
  std::sort(errors.begin(), errors.end());
  return errors[errors.size() / 2];
}

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_DEVICE_MODEL_TEST_UTIL_H_
