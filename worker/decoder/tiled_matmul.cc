#include "worker/decoder/tiled_matmul.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/work.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

using dnnl::memory;

// Half of a Zen 4 or Ice Lake core's L2.
constexpr size_t kChunkBytes = 512 << 10;
constexpr int kChunkAlign = 64;

// OpenMP's number of threads belongs to the calling thread.
void UseOneThread() {
  thread_local const bool done = [] {
    omp_set_num_threads(1);
    return true;
  }();
  (void)done;
}

const dnnl::engine& Engine() {
  static const dnnl::engine* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// The instruction sets that the library's f32 products tell apart; those beyond AVX-512 serve other types.
const char* InstructionSet() {
  const unsigned isa = dnnl_get_effective_cpu_isa();
  const auto has = [&](unsigned set) { return (isa & set) == set; };
  return has(dnnl_cpu_isa_avx512_core) ? "avx512"
         : has(dnnl_cpu_isa_avx2)      ? "avx2"
         : has(dnnl_cpu_isa_avx)       ? "avx"
                                       : "sse";
}

// What one thread needs to run a product: descriptors whose data pointers are set at each call.
struct Context {
  std::atomic_flag busy;
  dnnl::stream stream;
  memory x, scratch;
  // By distinct width of a chunk.
  memory y[2];
};

}  // namespace

struct TiledMatmul::Impl {
  int inputs = 0;
  int outputs = 0;
  // All chunks are `width` wide but the last.
  int width = 0;
  std::vector<memory> weights;
  // For full chunks, and for the last one when it is narrower.
  dnnl::matmul products[2];
  std::vector<Context> contexts;
  std::string fingerprint;

  int kind(int chunk) const { return (chunk + 1) * width <= outputs ? 0 : 1; }
};

TiledMatmul::TiledMatmul(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TiledMatmul::~TiledMatmul() = default;

absl::StatusOr<std::unique_ptr<TiledMatmul>> TiledMatmul::Create(std::span<const float> weights, int outputs,
                                                                 int inputs, int max_threads) {
  BALLAST_CHECK(outputs > 0 && inputs > 0 && weights.size() == static_cast<size_t>(outputs) * inputs)
      << "outputs=" << outputs << " inputs=" << inputs << " weights=" << weights.size();
  UseOneThread();
  auto impl = std::make_unique<Impl>();
  impl->inputs = inputs;
  impl->outputs = outputs;
  // Equal chunks of about kChunkBytes.
  const size_t total = weights.size() * sizeof(float);
  const int wanted = static_cast<int>((total + kChunkBytes - 1) / kChunkBytes);
  impl->width = std::min(outputs, (outputs + wanted - 1) / wanted);
  impl->width = std::min(outputs, (impl->width + kChunkAlign - 1) / kChunkAlign * kChunkAlign);
  const int chunks = (outputs + impl->width - 1) / impl->width;
  try {
    constexpr auto kF32 = memory::data_type::f32;
    const memory::desc x({kTileRows, inputs}, kF32, memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    memory::desc packed[2], y[2];
    size_t scratch_bytes = 0;
    for (int kind = 0; kind < 2; ++kind) {
      const int width = kind == 0 ? impl->width : outputs - (chunks - 1) * impl->width;
      if (kind == 1 && width == impl->width) break;
      y[kind] = memory::desc({kTileRows, width}, kF32, memory::dims{outputs, 1});
      const dnnl::matmul::primitive_desc product(
          dnnl::matmul::desc(x, memory::desc({inputs, width}, kF32, memory::format_tag::any), y[kind]), attributes,
          Engine());
      packed[kind] = product.weights_desc();
      scratch_bytes = std::max(scratch_bytes, product.scratchpad_desc().get_size());
      impl->products[kind] = dnnl::matmul(product);
      absl::StrAppend(&impl->fingerprint, kind == 0 ? "" : ",", product.impl_info_str());
    }
    const dnnl_version_t* version = dnnl_version();
    impl->fingerprint = absl::StrCat("onednn-", version->major, ".", version->minor, ".", version->patch, "-t",
                                     kTileRows, "-", InstructionSet(), "-", impl->fingerprint);
    dnnl::stream stream(Engine());
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int width = std::min(impl->width, outputs - chunk * impl->width);
      // [width][inputs] as it lies, read as its transpose.
      memory plain(memory::desc({inputs, width}, kF32, memory::dims{1, inputs}), Engine(),
                   const_cast<float*>(weights.data()) + static_cast<size_t>(chunk) * impl->width * inputs);
      memory& to = impl->weights.emplace_back(packed[impl->kind(chunk)], Engine());
      dnnl::reorder(plain, to).execute(stream, plain, to);
    }
    stream.wait();
    impl->contexts = std::vector<Context>(max_threads);
    for (Context& context : impl->contexts) {
      context.stream = dnnl::stream(Engine());
      context.x = memory(x, Engine(), nullptr);
      for (int kind = 0; kind < 2; ++kind) {
        if (impl->products[kind]) context.y[kind] = memory(y[kind], Engine(), nullptr);
      }
      context.scratch = memory(memory::desc({static_cast<memory::dim>(std::max<size_t>(scratch_bytes, 1))},
                                            memory::data_type::u8, memory::format_tag::a),
                               Engine());
    }
  } catch (const dnnl::error& error) {
    return absl::InternalError(absl::StrCat("oneDNN refuses a product of ", kTileRows, " rows, ", inputs,
                                            " inputs and ", outputs, " outputs: ", error.what()));
  }
  return std::unique_ptr<TiledMatmul>(new TiledMatmul(std::move(impl)));
}

int TiledMatmul::inputs() const { return impl_->inputs; }
int TiledMatmul::outputs() const { return impl_->outputs; }
int TiledMatmul::num_chunks() const { return static_cast<int>(impl_->weights.size()); }
const std::string& TiledMatmul::fingerprint() const { return impl_->fingerprint; }

void TiledMatmul::RunChunk(int chunk, const float* x, int num_rows, float* y) const {
  BALLAST_CHECK(num_rows % kTileRows == 0) << "num_rows=" << num_rows;
  UseOneThread();
  Context* context = impl_->contexts.data();
  // At most as many threads as contexts come here at once, so one is free.
  for (size_t i = 0; context->busy.test_and_set(std::memory_order_acquire);) {
    i = (i + 1) % impl_->contexts.size();
    context = &impl_->contexts[i];
  }
  const int kind = impl_->kind(chunk);
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, context->x.get()},
                                       {DNNL_ARG_WEIGHTS, impl_->weights[chunk].get()},
                                       {DNNL_ARG_DST, context->y[kind].get()},
                                       {DNNL_ARG_SCRATCHPAD, context->scratch.get()}};
  for (int row = 0; row < num_rows; row += kTileRows) {
    dnnl_memory_set_data_handle(context->x.get(), const_cast<float*>(x) + static_cast<size_t>(row) * impl_->inputs);
    dnnl_memory_set_data_handle(context->y[kind].get(), y + static_cast<size_t>(row) * impl_->outputs +
                                                            static_cast<size_t>(chunk) * impl_->width);
    const dnnl_status_t status =
        dnnl_primitive_execute(impl_->products[kind].get(), context->stream.get(), std::size(arguments), arguments);
    BALLAST_CHECK(status == dnnl_success) << "status=" << status;
  }
  context->busy.clear(std::memory_order_release);
}

void TiledMatmul::RunOnPool(const float* x, int num_rows, float* y, ThreadPool& pool) const {
  const double weights = static_cast<double>(impl_->inputs) * impl_->outputs;
  if (num_chunks() > 1 && internal::WorthWaking(pool, 2 * weights * num_rows, sizeof(float) * weights)) {
    pool.ParallelFor(num_chunks(), [&](int chunk) { RunChunk(chunk, x, num_rows, y); });
  } else {
    Run(x, num_rows, y);
  }
}

bool TiledMatmul::RowInvariant() const {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const size_t in = impl_->inputs, out = impl_->outputs;
  std::vector<float> row(in), x(in * kTileRows), y(out * kTileRows), first;
  for (float& v : row) v = normal(random);
  for (int at = 0; at < kTileRows; ++at) {
    for (float& v : x) v = normal(random);
    std::copy(row.begin(), row.end(), x.begin() + at * in);
    Run(x.data(), kTileRows, y.data());
    if (first.empty()) first.assign(y.begin(), y.begin() + out);
    if (std::memcmp(first.data(), y.data() + at * out, out * sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace ballast
