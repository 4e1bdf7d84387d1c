#include "lib/model/static_generate.h"

#include <algorithm>
#include <numeric>

#include "ATen/ops/empty.h"
#include "ATen/ops/tensor.h"
#include "ATen/ops/zeros.h"
#include "absl/strings/str_cat.h"
#include "lib/engine/generate_rows.h"
#include "lib/gpu/loader.h"
#include "lib/model/kernels.h"
#include "lib/model/linear.h"
#include "lib/model/static_cache.h"

namespace cox {
namespace {

// Row counts of recorded steps: a power of two, so that few shapes occur.
int64_t Bucket(int64_t rows) {
  int64_t bucket = 1;
  while (bucket < rows) bucket *= 2;
  return bucket;
}

at::Tensor Ids(const std::vector<int64_t>& values, at::Device device) {
  return IndexTensor(values).to(device);
}

// A recorded decode step of the plugin.
class StepGraph {
 public:
  explicit StepGraph(const CoxGpuApi* api)
      : api_(api), graph_(api->graph_new()) {}
  ~StepGraph() {
    if (graph_ != nullptr) api_->graph_delete(graph_);
  }
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;
  // Records what `body` launches.
  template <typename Body>
  void Record(Body&& body) {
    Check(graph_ == nullptr ? 1 : api_->graph_begin(graph_));
    body();
    Check(api_->graph_end(graph_));
  }
  void Replay() { Check(api_->graph_replay(graph_)); }

 private:
  void Check(int error) const {
    TORCH_CHECK(error == 0, "CUDA graph: ", api_->graph_error());
  }
  const CoxGpuApi* api_;
  void* graph_;
};

class StaticGeneration {
 public:
  StaticGeneration(const TorchModel& model, const GenerateRequest& request,
                   const CoxGpuApi* kernels)
      : request_(request),
        network_(model.PassNetwork()),
        shape_(ShapeOf(model.config(), model.options().fused_attention)),
        device_(DeviceOf(model.options())),
        kernels_(kernels),
        rows_(request),
        order_(request.prompts.size()) {
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
      return request.prompts[a].size() < request.prompts[b].size();
    });
    for (size_t row : order_) {
      lengths_.push_back(static_cast<int64_t>(request.prompts[row].size()));
    }
    KvCache::Size size;
    size.layers = model.config().layers;
    size.slots = Bucket(static_cast<int64_t>(order_.size()));
    size.positions =
        RoundUp(lengths_.back() + request.max_new_tokens, kPositionBlock);
    const bool bf16 = model.options().dtype == "bf16";
    cache_ = std::make_unique<StaticCache>(
        shape_, size,
        at::TensorOptions(device_).dtype(bf16 ? at::kBFloat16 : at::kFloat));
    // Slots past the last row repeat token 0 at position 0.
    const auto index = at::TensorOptions(device_).dtype(at::kLong);
    ids_ = at::zeros({size.slots}, index);
    positions_ = at::zeros({size.slots}, index);
    steps_ = at::zeros({size.slots}, index);
    std::vector<int64_t> positions = lengths_;
    positions.resize(static_cast<size_t>(size.slots), 0);
    positions_.copy_(IndexTensor(positions));
    if (SamplesOnDevice()) PrepareSampling(size.slots);
  }

  absl::StatusOr<GenerateResult> Run() {
    COX_RETURN_IF_ERROR(Prefill());
    StaticDecode attention(shape_, cache_.get(), positions_, kernels_);
    std::unique_ptr<StepGraph> graph;
    for (int64_t step = 1; !Done(); ++step) {
      // The first step runs as it is: libraries choose their kernels then.
      if (graph != nullptr) {
        graph->Replay();
      } else if (kernels_ != nullptr && step == 2) {
        graph = std::make_unique<StepGraph>(kernels_);
        graph->Record([&] { Step(attention); });
        graph->Replay();
      } else {
        Step(attention);
      }
      COX_RETURN_IF_ERROR(Draw(static_cast<int64_t>(order_.size())));
      positions_.add_(1);
    }
    return rows_.Take();
  }

 private:
  static constexpr int64_t kPositionBlock = 64;

  bool Done() const {
    for (size_t row : order_) {
      if (!rows_.finished(static_cast<int64_t>(row))) return false;
    }
    return true;
  }

  // What needs the host's sampler: text, context or a forced token.
  bool SamplesOnDevice() const {
    return kernels_ != nullptr && request_.lengths.empty() &&
           request_.sampling.repetition_penalty == 1.0;
  }

  void PrepareSampling(int64_t slots) {
    std::vector<int64_t> prompts, samples;
    for (size_t row : order_) {
      prompts.push_back(static_cast<int64_t>(request_.prompt_ids[row]));
      samples.push_back(static_cast<int64_t>(request_.sample_indices[row]));
    }
    prompts.resize(static_cast<size_t>(slots), 0);
    samples.resize(static_cast<size_t>(slots), 0);
    prompt_ids_ = Ids(prompts, device_);
    sample_indices_ = Ids(samples, device_);
    forbidden_ = Ids(request_.sampling.forbid_ids, device_);
    eos_ = Ids(request_.sampling.eos_ids, device_);
    min_new_ = Ids(std::vector<int64_t>(static_cast<size_t>(slots),
                                        request_.sampling.min_new_tokens),
                   device_);
    logprobs_ =
        at::zeros({slots}, at::TensorOptions(device_).dtype(at::kFloat));
  }

  absl::Status Prefill() {
    std::vector<int64_t> ids, positions, last;
    for (size_t row : order_) {
      for (size_t j = 0; j < request_.prompts[row].size(); ++j) {
        ids.push_back(request_.prompts[row][j]);
        positions.push_back(static_cast<int64_t>(j));
      }
      last.push_back(static_cast<int64_t>(ids.size()) - 1);
    }
    StaticPrefill attention(shape_, lengths_, cache_.get());
    const at::Tensor states = network_->Decode(
        {IndexTensor(ids), IndexTensor(positions)}, at::Tensor(), attention);
    last.resize(static_cast<size_t>(cache_->slots()), 0);
    logits_ = Logits(states.index_select(0, Ids(last, device_)));
    return Draw(static_cast<int64_t>(order_.size()));
  }

  at::Tensor Logits(const at::Tensor& states) const {
    const at::Tensor& head = network_->head_weight();
    return MatMul(states.to(head.scalar_type()), head.t(),
                  network_->head_bias());
  }

  void Step(StaticDecode& attention) {
    logits_ =
        Logits(network_->Decode({ids_, positions_}, at::Tensor(), attention));
  }

  // Draws for the first `rows` slots from `logits_` and puts the tokens where
  // the next step reads them.
  absl::Status Draw(int64_t rows) {
    if (SamplesOnDevice()) {
      COX_RETURN_IF_ERROR(DrawOnDevice(rows));
    } else {
      COX_RETURN_IF_ERROR(DrawOnHost(rows));
    }
    return absl::OkStatus();
  }

  absl::Status DrawOnDevice(int64_t rows) {
    const SamplingOptions& sampling = request_.sampling;
    CoxGpuSample batch = {};
    batch.device_logits = logits_.data_ptr<float>();
    batch.rows = rows;
    batch.vocab = logits_.size(1);
    batch.temperature = sampling.temperature;
    batch.top_k = sampling.top_k;
    batch.top_p = sampling.top_p;
    batch.min_p = sampling.min_p;
    batch.device_forbidden = forbidden_.const_data_ptr<int64_t>();
    batch.forbidden = forbidden_.numel();
    batch.device_eos = eos_.const_data_ptr<int64_t>();
    batch.eos = eos_.numel();
    batch.device_min_new = min_new_.const_data_ptr<int64_t>();
    batch.seed = request_.seed;
    batch.device_prompt_ids = reinterpret_cast<const uint64_t*>(
        prompt_ids_.const_data_ptr<int64_t>());
    batch.device_sample_indices = reinterpret_cast<const uint64_t*>(
        sample_indices_.const_data_ptr<int64_t>());
    batch.device_steps = steps_.const_data_ptr<int64_t>();
    batch.device_tokens = ids_.data_ptr<int64_t>();
    batch.device_logprobs = logprobs_.data_ptr<float>();
    const int error = kernels_->sample(&batch, kernels_->current_stream());
    TORCH_CHECK(error == 0, "GPU sampling: ", kernels_->error_text(error));
    steps_.add_(1);
    const at::Tensor tokens = ids_.to(at::kCPU);
    ids_.clamp_min_(0);  // of a finished row an invalid token is no error
    const at::Tensor logprobs = logprobs_.to(at::kCPU);
    for (int64_t slot = 0; slot < rows; ++slot) {
      const int64_t row = Row(slot);
      if (rows_.finished(row)) continue;
      const int64_t token = tokens.const_data_ptr<int64_t>()[slot];
      if (token < 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "row ", row, ": logits: NaN, +inf, or no token is left to draw"));
      }
      rows_.Record(row, static_cast<int32_t>(token),
                   logprobs.const_data_ptr<float>()[slot]);
    }
    return absl::OkStatus();
  }

  absl::Status DrawOnHost(int64_t rows) {
    const at::Tensor logits = logits_.to(at::kCPU).contiguous();
    const float* data = logits.const_data_ptr<float>();
    const size_t vocab = static_cast<size_t>(logits.size(1));
    std::vector<int64_t> tokens(static_cast<size_t>(cache_->slots()), 0);
    for (int64_t slot = 0; slot < rows; ++slot) {
      const int64_t row = Row(slot);
      if (!rows_.finished(row)) {
        COX_RETURN_IF_ERROR(rows_.Sample(
            row, {data + static_cast<size_t>(slot) * vocab, vocab}));
      }
      tokens[static_cast<size_t>(slot)] = rows_.last_token(row);
    }
    ids_.copy_(IndexTensor(tokens));
    return absl::OkStatus();
  }

  int64_t Row(int64_t slot) const {
    return static_cast<int64_t>(order_[static_cast<size_t>(slot)]);
  }

  const GenerateRequest& request_;
  const std::shared_ptr<const Network> network_;
  const AttentionShape shape_;
  const at::Device device_;
  const CoxGpuApi* kernels_;
  GenerateRows rows_;
  std::vector<size_t> order_;     // request row of each slot
  std::vector<int64_t> lengths_;  // of the slots' prompts, ascending
  std::unique_ptr<StaticCache> cache_;
  // [slots]: the token to decode, where it goes, how many were drawn.
  at::Tensor ids_, positions_, steps_;
  at::Tensor logits_;  // [slots, V]; a replayed step writes the same memory
  at::Tensor prompt_ids_, sample_indices_, forbidden_, eos_, min_new_;
  at::Tensor logprobs_;
};

}  // namespace

absl::StatusOr<GenerateResult> StaticGenerate(const TorchModel& model,
                                              const GenerateRequest& request) {
  if (model.config().family == ModelFamily::kInstructEncdec) {
    return absl::FailedPreconditionError(
        "generate: encoder-decoder models decode on device cpu only");
  }
  const CoxGpuApi* kernels = nullptr;
  if (model.options().device == "cuda") {
    COX_ASSIGN_OR_RETURN(kernels, LoadGpu());
  }
  return StaticGeneration(model, request, kernels).Run();
}

}  // namespace cox
