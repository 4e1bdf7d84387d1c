#include "lib/model/language_head.h"

#include <algorithm>

#include "ATen/ops/empty_like.h"
#include "ATen/ops/zeros.h"
#include "lib/base/status.h"
#include "lib/model/kernels.h"
#include "lib/model/linear.h"

namespace cox {
namespace {

// A chunk of logits that stays in a core's second-level cache between the
// matrix product and the passes over it.
constexpr int64_t kChunkElements = int64_t{1} << 18;

}  // namespace

at::Tensor LanguageHead::Logits(int64_t first, int64_t rows) const {
  return MatMul(hidden_.narrow(0, first, rows), options_.weight.t(), bias_);
}

LanguageHead::Output LanguageHead::Forward(const at::Tensor& hidden,
                                           std::vector<int32_t> targets,
                                           bool keep_logits) {
  const int64_t n = hidden.size(0);
  const int64_t vocab = options_.weight.size(0);
  COX_CHECK(static_cast<int64_t>(targets.size()) == n);
  padded_ = RoundUp(n, kRowRounding);
  hidden_ = at::zeros({padded_, hidden.size(1)}, at::kFloat);
  hidden_.narrow(0, 0, n).copy_(hidden);
  hidden_.mul_(1.0 / options_.temperature);
  if (options_.bias.defined()) {
    bias_ = options_.bias.mul(1.0 / options_.temperature);
  }
  targets_ = std::move(targets);
  log_sums_.assign(static_cast<size_t>(n), 0.0f);
  entropies_.assign(static_cast<size_t>(n), 0.0f);
  const int64_t bound = std::min(options_.max_logit_elements, kChunkElements);
  chunk_ = std::max<int64_t>(kRowRounding,
                             bound / vocab / kRowRounding * kRowRounding);
  kept_.clear();
  const bool keep = keep_logits && n * vocab <= options_.max_logit_elements;
  Output out;
  out.logprobs.resize(static_cast<size_t>(n));
  for (int64_t first = 0; first < n; first += chunk_) {
    at::Tensor logits = Logits(first, std::min(chunk_, padded_ - first));
    const float* z = logits.const_data_ptr<float>();
    for (int64_t r = 0; r < std::min(chunk_, n - first); ++r) {
      const size_t i = static_cast<size_t>(first + r);
      SoftmaxStats(z + r * vocab, vocab, &log_sums_[i], &entropies_[i]);
      out.logprobs[i] = z[r * vocab + targets_[i]] - log_sums_[i];
    }
    if (keep) kept_.push_back(std::move(logits));
  }
  out.entropies = entropies_;
  return out;
}

at::Tensor LanguageHead::Backward(const Gradient& gradient) {
  const int64_t n = static_cast<int64_t>(targets_.size());
  const int64_t vocab = options_.weight.size(0);
  at::Tensor out = at::empty_like(hidden_);
  for (int64_t first = 0; first < n; first += chunk_) {
    const int64_t rows = std::min(chunk_, padded_ - first);
    const int64_t real = std::min(chunk_, n - first);
    at::Tensor logits = kept_.empty()
                            ? Logits(first, rows)
                            : kept_[static_cast<size_t>(first / chunk_)];
    float* z = logits.data_ptr<float>();
    std::fill(z + real * vocab, z + rows * vocab, 0.0f);
    for (int64_t r = 0; r < real; ++r) {
      const size_t i = static_cast<size_t>(first + r);
      SoftmaxGradArgs args;
      args.n = vocab;
      args.target = targets_[i];
      args.log_sum = log_sums_[i];
      args.entropy = entropies_[i];
      args.logprob_gradient = gradient.logprobs[i];
      if (!gradient.entropies.empty()) {
        args.entropy_gradient = gradient.entropies[i];
      }
      SoftmaxGradInPlace(z + r * vocab, args);
    }
    out.narrow(0, first, rows).copy_(MatMul(logits, options_.weight));
    gradient.weight.add_(
        MatMul(logits.t(), hidden_.narrow(0, first, rows)));
    if (gradient.bias.defined()) {
      gradient.bias.add_(logits.sum(/*dim=*/0),
                         /*alpha=*/1.0 / options_.temperature);
    }
  }
  if (options_.temperature != 1.0) out.mul_(1.0 / options_.temperature);
  return out.narrow(0, 0, n);
}

}  // namespace cox
