// ScoreEngine and TrainEngine over LibTorch.

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "c10/core/GradMode.h"
#include "lib/model/device_state.h"
#include "lib/model/guard.h"
#include "lib/model/torch_model.h"
#include "torch/csrc/autograd/function_hook.h"
#include "torch/csrc/autograd/variable.h"

namespace cox {
namespace {

class TorchScoreEngine : public ScoreEngine {
 public:
  explicit TorchScoreEngine(const EngineOptions& options) : model_(options) {}
  absl::Status Load(std::shared_ptr<const Snapshot> snapshot) override {
    return Guard("load", [&] { return model_.Load(std::move(snapshot)); });
  }
  const ModelConfig& config() const override { return model_.config(); }
  absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch& batch,
                                         double temperature,
                                         bool want_entropy) override {
    return Guard("log-probs", [&] {
      return model_.Logprobs(batch, temperature, want_entropy);
    });
  }
  absl::StatusOr<std::vector<float>> Values(const TokenBatch& batch) override {
    return Guard("values", [&] { return model_.Values(batch); });
  }
  absl::StatusOr<std::vector<float>> Scores(const TokenBatch& batch) override {
    return Guard("scores", [&] { return model_.Scores(batch); });
  }

 private:
  TorchModel model_;
};

// Parameters and gradients are views into two flat buffers of one layout: host
// arenas, or a TensorState's tensors where computing is portable. Autograd adds
// into the gradient views in place; the language-model head adds its own part
// directly (language_head.h).
class TorchTrainEngine : public TrainEngine {
 public:
  TorchTrainEngine(const EngineOptions& options, const CoxGpuApi* kernels)
      : model_(options), kernels_(kernels) {}

  absl::Status Load(std::shared_ptr<const Snapshot> snapshot) override {
    return Guard("load", [&] { return DoLoad(*snapshot); });
  }
  const ModelConfig& config() const override { return model_.config(); }
  absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch& batch,
                                         double temperature,
                                         bool want_entropy) override {
    return Guard("log-probs", [&] {
      Upload();
      return model_.Logprobs(batch, temperature, want_entropy);
    });
  }
  absl::StatusOr<std::vector<float>> Values(const TokenBatch& batch) override {
    return Guard("values", [&] {
      Upload();
      return model_.Values(batch);
    });
  }
  absl::StatusOr<std::vector<float>> Scores(const TokenBatch& batch) override {
    return Guard("scores", [&] {
      Upload();
      return model_.Scores(batch);
    });
  }

  std::span<float> Parameters() override {
    return state_ != nullptr ? state_->HostParameters()
                             : Floats(parameters_.get());
  }
  std::span<float> Gradients() override {
    return state_ != nullptr ? state_->HostGradients()
                             : Floats(gradients_.get());
  }
  DeviceState* device() override { return state_.get(); }
  const Manifest& layout() const override { return layout_; }
  void ZeroGradients() override {
    if (state_ != nullptr) {
      state_->gradients().zero_();
      return;
    }
    std::span<float> all = Gradients();
    std::fill(all.begin(), all.end(), 0.0f);
  }

  absl::Status AccumulateLogprobs(const TokenBatch& batch, double temperature,
                                  bool want_entropy,
                                  const LogprobLoss& loss) override {
    return Guard("training on log-probs", [&]() -> absl::Status {
      COX_RETURN_IF_ERROR(model_.Check(batch, HeadKind::kLanguageModel));
      COX_RETURN_IF_ERROR(CheckTemperature(temperature));
      return DoLogprobs(batch, temperature, want_entropy, loss);
    });
  }
  absl::Status AccumulateValues(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    return Guard("training on values", [&]() -> absl::Status {
      COX_RETURN_IF_ERROR(model_.Check(batch, HeadKind::kScalar));
      ScalarSlots slots;
      slots.states = slots.entries = RealSlots(batch);
      slots.size = batch.batch * batch.length;
      return DoScalars(batch, slots, loss);
    });
  }
  absl::Status AccumulateScores(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    return Guard("training on scores", [&]() -> absl::Status {
      COX_RETURN_IF_ERROR(model_.Check(batch, HeadKind::kScalar));
      ScalarSlots slots;
      slots.states = LastSlots(batch);
      for (int64_t b = 0; b < batch.batch; ++b) slots.entries.push_back(b);
      slots.size = batch.batch;
      return DoScalars(batch, slots, loss);
    });
  }

  void OnGradientReady(GradientReady ready) override {
    ready_ = std::move(ready);
    last_pass_ = LastPassIs::kAhead;
  }
  void LastPass() override { last_pass_ = LastPassIs::kNext; }

 private:
  enum class LastPassIs { kAhead, kNext, kUnderWay, kOver };

  // Called by autograd when it has added to the gradient of a tensor, once per
  // pass.
  class Tell : public torch::autograd::PostAccumulateGradHook {
   public:
    Tell(TorchTrainEngine* engine, size_t tensor)
        : engine_(engine), tensor_(tensor) {}
    void operator()(const at::Tensor&) override { engine_->Told(tensor_); }

   private:
    TorchTrainEngine* engine_;
    size_t tensor_;
  };
  void Told(size_t tensor) {
    if (last_pass_ == LastPassIs::kUnderWay && ready_) ready_(tensor);
  }
  // Around a pass that adds gradients.
  absl::Status Begin() {
    if (last_pass_ == LastPassIs::kOver && ready_) {
      return absl::InternalError("training: a pass after the last one");
    }
    if (last_pass_ == LastPassIs::kNext) last_pass_ = LastPassIs::kUnderWay;
    return absl::OkStatus();
  }
  void End() {
    if (last_pass_ == LastPassIs::kUnderWay) last_pass_ = LastPassIs::kOver;
  }
  // Which grid slots the scalar head reads, and which entry of an output of
  // `size` each of them is.
  struct ScalarSlots {
    std::vector<int64_t> states;
    std::vector<int64_t> entries;
    int64_t size = 0;
  };

  static std::span<float> Floats(Arena* arena) {
    return arena == nullptr ? std::span<float>() : arena->floats();
  }

  absl::Status DoLoad(const Snapshot& snapshot) {
    COX_ASSIGN_OR_RETURN(ModelConfig config,
                         ModelConfig::FromJson(snapshot.manifest.config_json));
    COX_ASSIGN_OR_RETURN(std::vector<at::Tensor> source,
                         ParametersFromSnapshot(snapshot, config));
    Manifest layout = ParameterLayout(config, snapshot.manifest.model);
    layout.config_json = snapshot.manifest.config_json;
    if (IsPortable(model_.options())) {
      return LoadOnDevice(config, std::move(layout), source);
    }
    auto parameters = std::make_unique<Arena>(layout.arena_bytes);
    auto gradients = std::make_unique<Arena>(layout.arena_bytes);
    std::vector<at::Tensor> views;
    for (size_t i = 0; i < layout.tensors.size(); ++i) {
      const TensorInfo& tensor = layout.tensors[i];
      const size_t at = tensor.offset / sizeof(float);
      at::Tensor view =
          FloatView(parameters->floats().data() + at, tensor.shape);
      view.copy_(source[i]);
      view.requires_grad_(true);
      view.mutable_grad() =
          FloatView(gradients->floats().data() + at, tensor.shape);
      Watch(view, i);
      views.push_back(std::move(view));
    }
    model_.Adopt(config, std::move(views));
    layout_ = std::move(layout);
    parameters_ = std::move(parameters);
    gradients_ = std::move(gradients);
    return absl::OkStatus();
  }

  void Watch(const at::Tensor& parameter, size_t tensor) {
    torch::autograd::impl::set_post_acc_grad_hooks(
        parameter, std::make_unique<Tell>(this, tensor));
  }

  absl::Status LoadOnDevice(const ModelConfig& config, Manifest layout,
                            const std::vector<at::Tensor>& source) {
    c10::AutoGradMode no_grad(false);
    auto state = std::make_unique<TensorState>(
        static_cast<int64_t>(layout.arena_bytes / sizeof(float)),
        TensorState::Kind{.device = DeviceOf(model_.options()),
                          .kernels = kernels_,
                          .bf16_copy = model_.options().dtype == "bf16"});
    std::vector<at::Tensor> views, copies;
    for (size_t i = 0; i < layout.tensors.size(); ++i) {
      const TensorInfo& tensor = layout.tensors[i];
      const auto part = [&tensor](at::Tensor& flat) {
        return flat
            .narrow(0, static_cast<int64_t>(tensor.offset / sizeof(float)),
                    static_cast<int64_t>(tensor.bytes / sizeof(float)))
            .view(tensor.shape)
            .detach();
      };
      at::Tensor view = part(state->parameters());
      view.copy_(source[i]);
      view.requires_grad_(true);
      view.mutable_grad() = part(state->gradients());
      Watch(view, i);
      views.push_back(std::move(view));
      if (state->rounded().defined()) copies.push_back(part(state->rounded()));
    }
    state->CopyRounded();
    model_.Adopt(config, std::move(views), std::move(copies));
    layout_ = std::move(layout);
    state_ = std::move(state);
    return absl::OkStatus();
  }
  // What the host wrote into its copy of the parameters.
  void Upload() {
    if (state_ != nullptr) state_->Upload();
  }

  absl::Status DoLogprobs(const TokenBatch& batch, double temperature,
                          bool want_entropy, const LogprobLoss& loss) {
    Upload();
    const ScoredSlots scored = FindScored(batch);
    // Both are borrowed by the graph.
    std::shared_ptr<const Network> network;
    BatchStates all;
    at::Tensor states;
    {
      c10::AutoGradMode with_graph(true);
      network = model_.PassNetwork();
      all = StatesOf(*network, batch, model_.options().fused_attention);
      states = SelectSlots(all, scored.slots);
    }
    c10::AutoGradMode no_grad(false);
    LanguageHead head(model_.HeadOptions(*network, temperature));
    const LanguageHead::Output output =
        head.Forward(states.detach(), scored.targets, /*keep_logits=*/true);
    LogprobGradient gradient;
    gradient.logprobs.assign(batch.ids.size(), 0.0f);
    COX_RETURN_IF_ERROR(
        loss(ScatterLogprobs(batch, scored, output, want_entropy), &gradient));
    if (gradient.logprobs.size() != batch.ids.size() ||
        (!gradient.entropies.empty() &&
         gradient.entropies.size() != batch.ids.size())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "loss: expected ", batch.ids.size(), " gradients, found ",
          gradient.logprobs.size(), " and ", gradient.entropies.size()));
    }
    COX_RETURN_IF_ERROR(Begin());
    if (scored.slots.empty()) {
      End();
      return absl::OkStatus();
    }
    LanguageHead::Gradient rows_gradient;
    for (int64_t slot : scored.slots) {
      const size_t i = static_cast<size_t>(slot);
      rows_gradient.logprobs.push_back(gradient.logprobs[i]);
      if (!gradient.entropies.empty()) {
        rows_gradient.entropies.push_back(gradient.entropies[i]);
      }
    }
    rows_gradient.weight = network->head_weight().grad();
    if (network->head_bias().defined()) {
      rows_gradient.bias = network->head_bias().grad();
    }
    const at::Tensor gradient_of_states = head.Backward(rows_gradient);
    if (!model_.config().tied_embeddings) {
      // Autograd knows nothing of the head. It is the layout's end.
      const size_t count = layout_.tensors.size();
      Told(count - 1);
      if (network->head_bias().defined()) Told(count - 2);
    }
    states.backward(gradient_of_states.to(states.scalar_type()));
    End();
    return absl::OkStatus();
  }

  absl::Status DoScalars(const TokenBatch& batch, const ScalarSlots& slots,
                         const ScalarLoss& loss) {
    Upload();
    std::shared_ptr<const Network> network;
    BatchStates states;
    at::Tensor out;
    {
      c10::AutoGradMode with_graph(true);
      network = model_.PassNetwork();
      states = StatesOf(*network, batch, model_.options().fused_attention);
      out = ScalarHead(*network, SelectSlots(states, slots.states));
    }
    c10::AutoGradMode no_grad(false);
    const at::Tensor host = out.to(at::kCPU);
    const float* values = host.const_data_ptr<float>();
    std::vector<float> output(static_cast<size_t>(slots.size), 0.0f);
    std::vector<float> gradient(static_cast<size_t>(slots.size), 0.0f);
    for (size_t r = 0; r < slots.entries.size(); ++r) {
      output[static_cast<size_t>(slots.entries[r])] = values[r];
    }
    COX_RETURN_IF_ERROR(loss(output, gradient));
    COX_RETURN_IF_ERROR(Begin());
    std::vector<float> row_gradient;
    for (int64_t entry : slots.entries) {
      row_gradient.push_back(gradient[static_cast<size_t>(entry)]);
    }
    out.backward(
        FloatView(row_gradient.data(), {out.size(0)}).to(out.device()));
    End();
    return absl::OkStatus();
  }

  TorchModel model_;
  const CoxGpuApi* kernels_;
  GradientReady ready_;
  LastPassIs last_pass_ = LastPassIs::kAhead;
  Manifest layout_;
  std::unique_ptr<Arena> parameters_;
  std::unique_ptr<Arena> gradients_;
  std::unique_ptr<TensorState> state_;  // instead of both
};

}  // namespace

absl::StatusOr<std::unique_ptr<ScoreEngine>> MakeScoreEngine(
    const EngineOptions& options) {
  COX_RETURN_IF_ERROR(CheckEngineOptions(options));
  return std::unique_ptr<ScoreEngine>(new TorchScoreEngine(options));
}

absl::StatusOr<std::unique_ptr<TrainEngine>> MakeTrainEngine(
    const EngineOptions& options) {
  COX_RETURN_IF_ERROR(CheckEngineOptions(options));
  COX_ASSIGN_OR_RETURN(const CoxGpuApi* kernels, KernelsOf(options));
  return std::unique_ptr<TrainEngine>(new TorchTrainEngine(options, kernels));
}

}  // namespace cox
