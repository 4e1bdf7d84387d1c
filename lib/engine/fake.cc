#include "lib/engine/fake.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "lib/engine/generate_rows.h"

namespace cox {
namespace {

// The formulas of fake.h over one flat parameter buffer.
class FakeNetwork {
 public:
  FakeNetwork() = default;
  explicit FakeNetwork(ModelConfig config) : config_(std::move(config)) {
    Manifest layout = ParameterLayout(config_, "");
    for (const TensorInfo& tensor : layout.tensors) {
      const size_t at = tensor.offset / sizeof(float);
      if (tensor.name == "transformer.wte.weight") wte_ = at;
      if (tensor.name == "transformer.wpe.weight") wpe_ = at;
      if (tensor.name == "score.weight") score_ = at;
      if (tensor.name == "score.bias") score_bias_ = at;
    }
  }
  const ModelConfig& config() const { return config_; }

  std::vector<double> Hidden(std::span<const float> p, int32_t id,
                             int64_t position) const {
    std::vector<double> h(static_cast<size_t>(config_.hidden));
    for (size_t c = 0; c < h.size(); ++c) {
      h[c] = double{p[Wte(id) + c]} + double{p[Wpe(position) + c]};
    }
    return h;
  }
  std::vector<double> Logits(std::span<const float> p,
                             const std::vector<double>& h) const {
    std::vector<double> z(static_cast<size_t>(config_.vocab_size));
    for (size_t k = 0; k < z.size(); ++k) {
      const size_t row = Wte(static_cast<int64_t>(k));
      for (size_t c = 0; c < h.size(); ++c) z[k] += h[c] * double{p[row + c]};
    }
    return z;
  }
  double Value(std::span<const float> p, const std::vector<double>& h) const {
    double value = config_.score_bias ? double{p[score_bias_]} : 0.0;
    for (size_t c = 0; c < h.size(); ++c) value += h[c] * double{p[score_ + c]};
    return value;
  }
  // Adds d loss / d parameters of one row, given d loss / d logits.
  void BackwardLogits(std::span<const float> p, std::span<float> g, int32_t id,
                      int64_t position, const std::vector<double>& dz) const {
    const std::vector<double> h = Hidden(p, id, position);
    std::vector<double> dh(h.size(), 0.0);
    for (size_t k = 0; k < dz.size(); ++k) {
      const size_t row = Wte(static_cast<int64_t>(k));
      for (size_t c = 0; c < h.size(); ++c) {
        dh[c] += dz[k] * double{p[row + c]};
        g[row + c] += static_cast<float>(dz[k] * h[c]);
      }
    }
    BackwardHidden(g, id, position, dh);
  }
  void BackwardValue(std::span<const float> p, std::span<float> g, int32_t id,
                     int64_t position, double dv) const {
    const std::vector<double> h = Hidden(p, id, position);
    std::vector<double> dh(h.size());
    for (size_t c = 0; c < h.size(); ++c) {
      dh[c] = dv * double{p[score_ + c]};
      g[score_ + c] += static_cast<float>(dv * h[c]);
    }
    if (config_.score_bias) g[score_bias_] += static_cast<float>(dv);
    BackwardHidden(g, id, position, dh);
  }

 private:
  size_t Wte(int64_t id) const {
    return wte_ + static_cast<size_t>(id * config_.hidden);
  }
  size_t Wpe(int64_t position) const {
    return wpe_ + static_cast<size_t>(position * config_.hidden);
  }
  void BackwardHidden(std::span<float> g, int32_t id, int64_t position,
                      const std::vector<double>& dh) const {
    for (size_t c = 0; c < dh.size(); ++c) {
      g[Wte(id) + c] += static_cast<float>(dh[c]);
      g[Wpe(position) + c] += static_cast<float>(dh[c]);
    }
  }

  ModelConfig config_;
  size_t wte_ = 0, wpe_ = 0, score_ = 0, score_bias_ = 0;
};

struct RowOutput {
  std::vector<double> log_probs;  // [V]
  double logprob = 0;
  double entropy = 0;
};

RowOutput LogSoftmax(std::vector<double> z, double temperature, int32_t next) {
  double top = *std::max_element(z.begin(), z.end());
  double total = 0;
  for (double& x : z) {
    x = (x - top) / temperature;
    total += std::exp(x);
  }
  RowOutput out;
  for (double& x : z) {
    x -= std::log(total);
    out.entropy -= std::exp(x) * x;
  }
  out.logprob = z[static_cast<size_t>(next)];
  out.log_probs = std::move(z);
  return out;
}

// Both fakes in one class; the factories show one face each.
class FakeEngine : public PolicyEngine, public TrainEngine {
 public:
  absl::Status Load(std::shared_ptr<const Snapshot> snapshot) override {
    COX_ASSIGN_OR_RETURN(ModelConfig config,
                         ModelConfig::FromJson(snapshot->manifest.config_json));
    if (config.family != ModelFamily::kGpt2 || !config.tied_embeddings) {
      return absl::FailedPreconditionError(
          "fake engine: expected a gpt2 configuration with tied embeddings");
    }
    Manifest layout = ParameterLayout(config, snapshot->manifest.model);
    layout.config_json = snapshot->manifest.config_json;
    std::vector<float> parameters(layout.arena_bytes / sizeof(float));
    for (const TensorInfo& tensor : layout.tensors) {
      COX_ASSIGN_OR_RETURN(auto bytes, snapshot->Tensor(tensor.name));
      if (bytes.size() != tensor.bytes) {
        return absl::FailedPreconditionError(
            absl::StrCat("tensor ", tensor.name, ": expected ", tensor.bytes,
                         " bytes, found ", bytes.size()));
      }
      std::memcpy(parameters.data() + tensor.offset / sizeof(float),
                  bytes.data(), bytes.size());
    }
    network_ = FakeNetwork(std::move(config));
    layout_ = std::move(layout);
    parameters_ = std::move(parameters);
    gradients_.assign(parameters_.size(), 0.0f);
    return absl::OkStatus();
  }
  const ModelConfig& config() const override { return network_.config(); }

  absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch& batch,
                                         double temperature,
                                         bool want_entropy) override {
    COX_RETURN_IF_ERROR(Check(batch, HeadKind::kLanguageModel));
    if (!(temperature > 0)) {
      return absl::InvalidArgumentError("temperature: expected > 0");
    }
    LogprobOutput out;
    out.logprobs.assign(batch.ids.size(), 0.0f);
    if (want_entropy) out.entropies.assign(batch.ids.size(), 0.0f);
    for (size_t i = 0; i < batch.ids.size(); ++i) {
      if (batch.scored[i] == 0) continue;
      RowOutput row = Row(batch, i, temperature);
      out.logprobs[i] = static_cast<float>(row.logprob);
      if (want_entropy) out.entropies[i] = static_cast<float>(row.entropy);
    }
    return out;
  }
  absl::StatusOr<std::vector<float>> Values(const TokenBatch& batch) override {
    COX_RETURN_IF_ERROR(Check(batch, HeadKind::kScalar));
    std::vector<float> out(batch.ids.size(), 0.0f);
    for (size_t i = 0; i < out.size(); ++i) {
      if (Real(batch, i)) out[i] = static_cast<float>(ValueAt(batch, i));
    }
    return out;
  }
  absl::StatusOr<std::vector<float>> Scores(const TokenBatch& batch) override {
    COX_RETURN_IF_ERROR(Check(batch, HeadKind::kScalar));
    std::vector<float> out;
    for (int64_t b = 0; b < batch.batch; ++b) {
      out.push_back(static_cast<float>(ValueAt(batch, Last(batch, b))));
    }
    return out;
  }

  absl::StatusOr<GenerateResult> Generate(
      const GenerateRequest& request) override {
    COX_RETURN_IF_ERROR(ValidateGenerateRequest(request, config()));
    GenerateRows rows(request);
    for (size_t r = 0; r < request.prompts.size(); ++r) {
      const int64_t row = static_cast<int64_t>(r);
      int32_t last = request.prompts[r].back();
      int64_t position = static_cast<int64_t>(request.prompts[r].size()) - 1;
      while (!rows.finished(row)) {
        std::vector<double> z = network_.Logits(
            parameters_, network_.Hidden(parameters_, last, position));
        std::vector<float> logits(z.begin(), z.end());
        COX_RETURN_IF_ERROR(rows.Sample(row, logits));
        last = rows.last_token(row);
        ++position;
      }
    }
    return rows.Take();
  }

  std::span<float> Parameters() override { return parameters_; }
  std::span<float> Gradients() override { return gradients_; }
  const Manifest& layout() const override { return layout_; }
  void ZeroGradients() override {
    std::fill(gradients_.begin(), gradients_.end(), 0.0f);
  }

  absl::Status AccumulateLogprobs(const TokenBatch& batch, double temperature,
                                  bool want_entropy,
                                  const LogprobLoss& loss) override {
    COX_RETURN_IF_ERROR(CheckDropout(batch));
    COX_ASSIGN_OR_RETURN(LogprobOutput out,
                         Logprobs(batch, temperature, want_entropy));
    LogprobGradient gradient;
    gradient.logprobs.assign(batch.ids.size(), 0.0f);
    COX_RETURN_IF_ERROR(loss(out, &gradient));
    COX_RETURN_IF_ERROR(CheckPass());
    if (gradient.logprobs.size() != batch.ids.size() ||
        (!gradient.entropies.empty() &&
         gradient.entropies.size() != batch.ids.size())) {
      return absl::InvalidArgumentError("loss: gradient of another size");
    }
    for (size_t i = 0; i < batch.ids.size(); ++i) {
      if (batch.scored[i] == 0) continue;
      const RowOutput row = Row(batch, i, temperature);
      const double g = double{gradient.logprobs[i]};
      const double e =
          gradient.entropies.empty() ? 0.0 : double{gradient.entropies[i]};
      std::vector<double> dz(row.log_probs.size());
      for (size_t k = 0; k < dz.size(); ++k) {
        const double p = std::exp(row.log_probs[k]);
        dz[k] = -p * (g + e * (row.log_probs[k] + row.entropy));
      }
      dz[static_cast<size_t>(batch.ids[i + 1])] += g;
      for (double& x : dz) x /= temperature;
      network_.BackwardLogits(parameters_, gradients_, batch.ids[i],
                              Position(batch, i), dz);
    }
    TellReady();
    return absl::OkStatus();
  }
  absl::Status AccumulateValues(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    COX_RETURN_IF_ERROR(CheckDropout(batch));
    COX_ASSIGN_OR_RETURN(std::vector<float> out, Values(batch));
    std::vector<float> gradient(out.size(), 0.0f);
    COX_RETURN_IF_ERROR(loss(out, gradient));
    COX_RETURN_IF_ERROR(CheckPass());
    for (size_t i = 0; i < out.size(); ++i) {
      if (!Real(batch, i)) continue;
      network_.BackwardValue(parameters_, gradients_, batch.ids[i],
                             Position(batch, i), double{gradient[i]});
    }
    TellReady();
    return absl::OkStatus();
  }
  absl::Status AccumulateScores(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    COX_RETURN_IF_ERROR(CheckDropout(batch));
    COX_ASSIGN_OR_RETURN(std::vector<float> out, Scores(batch));
    std::vector<float> gradient(out.size(), 0.0f);
    COX_RETURN_IF_ERROR(loss(out, gradient));
    COX_RETURN_IF_ERROR(CheckPass());
    for (int64_t b = 0; b < batch.batch; ++b) {
      const size_t i = Last(batch, b);
      network_.BackwardValue(parameters_, gradients_, batch.ids[i],
                             Position(batch, i),
                             double{gradient[static_cast<size_t>(b)]});
    }
    TellReady();
    return absl::OkStatus();
  }

  void OnGradientReady(GradientReady ready) override {
    ready_ = std::move(ready);
    last_pass_ = told_ = false;
  }
  void LastPass() override { last_pass_ = true; }

 private:
  absl::Status CheckPass() const {
    if (!told_) return absl::OkStatus();
    return absl::InternalError("fake engine: a pass after the last one");
  }
  // Of all tensors, as a backward pass would: the last ones first.
  void TellReady() {
    if (!ready_ || !last_pass_) return;
    for (size_t i = layout_.tensors.size(); i > 0; --i) ready_(i - 1);
    told_ = true;
  }
  static absl::Status CheckDropout(const TokenBatch& batch) {
    if (batch.dropout == 0) return absl::OkStatus();
    return absl::UnimplementedError("fake engine: there is no dropout");
  }
  absl::Status Check(const TokenBatch& batch, HeadKind head) const {
    if (parameters_.empty()) {
      return absl::FailedPreconditionError("no weights are loaded");
    }
    if (config().head != head) {
      return absl::FailedPreconditionError("the model has another head");
    }
    return batch.Validate(config());
  }
  static int64_t Position(const TokenBatch& batch, size_t i) {
    return static_cast<int64_t>(i) % batch.length;
  }
  static bool Real(const TokenBatch& batch, size_t i) {
    const size_t row = i / static_cast<size_t>(batch.length);
    return Position(batch, i) < batch.lengths[row];
  }
  static size_t Last(const TokenBatch& batch, int64_t b) {
    return static_cast<size_t>(b * batch.length +
                               batch.lengths[static_cast<size_t>(b)] - 1);
  }
  RowOutput Row(const TokenBatch& batch, size_t i, double temperature) const {
    return LogSoftmax(
        network_.Logits(parameters_, network_.Hidden(parameters_, batch.ids[i],
                                                     Position(batch, i))),
        temperature, batch.ids[i + 1]);
  }
  double ValueAt(const TokenBatch& batch, size_t i) const {
    return network_.Value(
        parameters_,
        network_.Hidden(parameters_, batch.ids[i], Position(batch, i)));
  }

  FakeNetwork network_;
  Manifest layout_;
  std::vector<float> parameters_;
  std::vector<float> gradients_;
  GradientReady ready_;
  bool last_pass_ = false;
  bool told_ = false;
};

}  // namespace

ModelConfig FakeModelConfig(int64_t vocab_size, int64_t hidden, HeadKind head,
                            int64_t max_positions) {
  ModelConfig config;
  config.family = ModelFamily::kGpt2;
  config.head = head;
  config.vocab_size = vocab_size;
  config.hidden = hidden;
  config.layers = 1;
  config.heads = config.kv_heads = 1;
  config.head_dim = hidden;
  config.intermediate = hidden;
  config.max_positions = max_positions;
  config.attention_bias = config.mlp_bias = true;
  return config;
}

absl::StatusOr<std::shared_ptr<const Snapshot>> FakeSnapshot(
    const ModelConfig& config, std::string model, uint64_t seed) {
  Manifest layout = ParameterLayout(config, std::move(model));
  std::vector<float> parameters(layout.arena_bytes / sizeof(float));
  InitializeParameters(config, seed, parameters);
  return SnapshotFromFloats(layout, parameters);
}

std::unique_ptr<PolicyEngine> MakeFakePolicyEngine() {
  return std::unique_ptr<PolicyEngine>(new FakeEngine());
}
std::unique_ptr<TrainEngine> MakeFakeTrainEngine() {
  return std::unique_ptr<TrainEngine>(new FakeEngine());
}

}  // namespace cox
