#include "lib/model/measure.h"

#include <algorithm>
#include <cmath>

#include "ATen/ops/randn.h"
#include "ATen/ops/sum.h"
#include "c10/core/GradMode.h"
#include "lib/base/clock.h"
#include "lib/engine/generate_rows.h"
#include "lib/model/guard.h"
#include "lib/model/linear.h"
#include "lib/model/torch_model.h"

namespace cox {
namespace {

double Now() { return 1e-9 * static_cast<double>(Clock::Real().Now().ns); }

// Least seconds of one call of `body`, which must wait for its result.
template <typename Body>
double Fastest(double seconds, Body&& body) {
  body();  // chooses kernels, touches memory
  const double start = Now();
  double best = 1e30;
  for (int i = 0; i < 3 || Now() - start < seconds; ++i) {
    const double before = Now();
    body();
    best = std::min(best, Now() - before);
  }
  return best;
}

at::TensorOptions TensorKind(const EngineOptions& options, bool bf16) {
  return at::TensorOptions(at::Device(options.device))
      .dtype(bf16 ? at::kBFloat16 : at::kFloat);
}

// Prompt and answer of one row; scored where a token of the answer follows.
TokenBatch OneRow(const std::vector<int32_t>& prompt,
                  const std::vector<int32_t>& answer) {
  TokenBatch batch;
  batch.batch = 1;
  batch.ids = prompt;
  batch.ids.insert(batch.ids.end(), answer.begin(), answer.end());
  batch.length = static_cast<int64_t>(batch.ids.size());
  batch.lengths = {static_cast<int32_t>(batch.length)};
  batch.scored.assign(batch.ids.size(), 0);
  std::fill(
      batch.scored.begin() + static_cast<std::ptrdiff_t>(prompt.size()) - 1,
      batch.scored.end() - 1, uint8_t{1});
  return batch;
}

absl::Status CheckRow(const TorchModel& model, const GenerateRequest& request,
                      const GenerateResult& result, size_t row,
                      LogprobCheck* check) {
  const std::vector<int32_t>& answer = result.tokens[row];
  if (answer.empty()) return absl::OkStatus();
  const TokenBatch batch = OneRow(request.prompts[row], answer);
  COX_RETURN_IF_ERROR(model.Check(batch, HeadKind::kLanguageModel));
  const std::shared_ptr<const Network> network = model.PassNetwork();
  const at::Tensor states =
      SelectSlots(StatesOf(*network, batch, model.options().fused_attention),
                  FindScored(batch).slots);
  const at::Tensor& head = network->head_weight();
  const at::Tensor logits =
      MatMul(states.to(head.scalar_type()), head.t(), network->head_bias())
          .to(at::kCPU);
  const float* data = logits.const_data_ptr<float>();
  const size_t vocab = static_cast<size_t>(logits.size(1));
  const SamplingOptions sampling = RowSampling(request, row);
  TokenSampler sampler;
  for (size_t t = 0; t < answer.size(); ++t) {
    const std::span<const int32_t> context(batch.ids.data(),
                                           request.prompts[row].size() + t);
    COX_RETURN_IF_ERROR(sampler.Process<float>(
        {data + t * vocab, vocab}, sampling, context, static_cast<int64_t>(t)));
    if (!sampler.Kept(answer[t])) {
      ++check->removed;
      continue;
    }
    ++check->tokens;
    check->max_abs = std::max(
        check->max_abs, std::abs(sampler.Logprob(answer[t]) -
                                 static_cast<double>(result.logprobs[row][t])));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<double> GemmGflops(const EngineOptions& options,
                                  const GemmShape& shape, double seconds) {
  COX_RETURN_IF_ERROR(CheckEngineOptions(options));
  return Guard("matrix product", [&]() -> absl::StatusOr<double> {
    c10::AutoGradMode no_grad(false);
    const auto kind = TensorKind(options, options.dtype == "bf16");
    const at::Tensor a = at::randn({shape.m, shape.k}, kind);
    const at::Tensor b = at::randn({shape.n, shape.k}, kind);
    // Several products per reading, so that a launch costs nothing.
    const double flop = 2.0 * static_cast<double>(shape.m) *
                        static_cast<double>(shape.k) *
                        static_cast<double>(shape.n);
    const int repeats = static_cast<int>(std::clamp(2e9 / flop, 1.0, 100.0));
    const double best = Fastest(seconds, [&] {
      at::Tensor c;
      for (int i = 0; i < repeats; ++i) c = MatMul(a, b.t());
      c.narrow(0, 0, 1).narrow(1, 0, 1).item();
    });
    return flop * repeats / best * 1e-9;
  });
}

absl::StatusOr<double> ReadGbPerSecond(const EngineOptions& options,
                                       int64_t bytes, double seconds) {
  COX_RETURN_IF_ERROR(CheckEngineOptions(options));
  return Guard("reading memory", [&]() -> absl::StatusOr<double> {
    c10::AutoGradMode no_grad(false);
    const at::Tensor data =
        at::randn({bytes / 4}, TensorKind(options, /*bf16=*/false));
    const double best = Fastest(seconds, [&] { at::sum(data).item(); });
    return static_cast<double>(bytes) / best * 1e-9;
  });
}

absl::StatusOr<LogprobCheck> CheckLogprobs(
    const EngineOptions& options, std::shared_ptr<const Snapshot> snapshot,
    const GenerateRequest& request, const GenerateResult& result) {
  COX_RETURN_IF_ERROR(CheckEngineOptions(options));
  return Guard("log-prob check", [&]() -> absl::StatusOr<LogprobCheck> {
    c10::AutoGradMode no_grad(false);
    TorchModel model(options);
    COX_RETURN_IF_ERROR(model.Load(std::move(snapshot)));
    COX_RETURN_IF_ERROR(ValidateGenerateRequest(request, model.config()));
    LogprobCheck check;
    for (size_t row = 0; row < request.prompts.size(); ++row) {
      COX_RETURN_IF_ERROR(CheckRow(model, request, result, row, &check));
    }
    return check;
  });
}

}  // namespace cox
