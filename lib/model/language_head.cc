#include "lib/model/language_head.h"

#include <algorithm>

#include "ATen/ops/empty.h"
#include "ATen/ops/empty_like.h"
#include "ATen/ops/from_blob.h"
#include "ATen/ops/logsumexp.h"
#include "ATen/ops/zeros.h"
#include "lib/base/status.h"
#include "lib/model/kernels.h"
#include "lib/model/linear.h"

namespace cox {
namespace {

// A chunk of logits that stays in a core's second-level cache between the
// matrix product and the passes over it.
constexpr int64_t kChunkElements = int64_t{1} << 18;

void CopyTo(const at::Tensor& values, float* out) {
  const at::Tensor host = values.to(at::kCPU).contiguous();
  std::copy_n(host.const_data_ptr<float>(), host.numel(), out);
}

// [n, 1] on `like`'s device.
at::Tensor Column(const float* values, int64_t n, const at::Tensor& like) {
  return at::from_blob(const_cast<float*>(values), {n, 1}, at::kFloat)
      .to(like.device(), at::kFloat, /*non_blocking=*/false, /*copy=*/true);
}

}  // namespace

void LanguageHead::StatsOf(const at::Tensor& logits, int64_t first,
                           int64_t real, Output* out) {
  const size_t at = static_cast<size_t>(first);
  if (options_.loops) {
    const int64_t vocab = logits.size(1);
    const float* z = logits.const_data_ptr<float>();
    for (int64_t r = 0; r < real; ++r) {
      const size_t i = static_cast<size_t>(first + r);
      SoftmaxStats(z + r * vocab, vocab, &log_sums_[i], &entropies_[i]);
      out->logprobs[i] = z[r * vocab + targets_[i]] - log_sums_[i];
    }
    return;
  }
  const at::Tensor z = logits.narrow(0, 0, real);
  const at::Tensor log_sum = at::logsumexp(z, /*dim=*/1, /*keepdim=*/true);
  // H = log s - Σ p z.
  const at::Tensor mean = z.sub(log_sum).exp_().mul_(z).sum(/*dim=*/1);
  const at::Tensor target =
      z.gather(/*dim=*/1, target_ids_.narrow(0, first, real));
  CopyTo(log_sum, &log_sums_[at]);
  CopyTo(log_sum.squeeze(1).sub(mean), &entropies_[at]);
  CopyTo(target.sub(log_sum), &out->logprobs[at]);
}

void LanguageHead::GradientInPlace(at::Tensor& logits, int64_t first,
                                   int64_t real,
                                   const Gradient& gradient) const {
  const size_t at = static_cast<size_t>(first);
  if (options_.loops) {
    const int64_t vocab = logits.size(1);
    float* z = logits.data_ptr<float>();
    std::fill(z + real * vocab, z + logits.size(0) * vocab, 0.0f);
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
    return;
  }
  // dz_k = g (1[k = target] - p_k) - e p_k (log p_k + H), as kernels.h says.
  logits.narrow(0, real, logits.size(0) - real).zero_();
  at::Tensor z = logits.narrow(0, 0, real);
  const at::Tensor g = Column(&gradient.logprobs[at], real, z);
  z.sub_(Column(&log_sums_[at], real, z));  // log p
  at::Tensor factor = g;
  if (!gradient.entropies.empty()) {
    factor = z.add(Column(&entropies_[at], real, z))
                 .mul_(Column(&gradient.entropies[at], real, z))
                 .add_(g);
  }
  z.exp_().mul_(factor).neg_();
  z.scatter_add_(/*dim=*/1, target_ids_.narrow(0, first, real), g);
}

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
  hidden_ =
      at::zeros({padded_, hidden.size(1)}, hidden.options().dtype(at::kFloat));
  hidden_.narrow(0, 0, n).copy_(hidden);
  hidden_.mul_(1.0 / options_.temperature);
  if (options_.bias.defined()) {
    bias_ = options_.bias.mul(1.0 / options_.temperature);
  }
  targets_ = std::move(targets);
  if (!options_.loops) {
    at::Tensor ids = at::empty({n, 1}, at::kLong);
    std::copy(targets_.begin(), targets_.end(), ids.data_ptr<int64_t>());
    target_ids_ = ids.to(hidden.device());
  }
  log_sums_.assign(static_cast<size_t>(n), 0.0f);
  entropies_.assign(static_cast<size_t>(n), 0.0f);
  // A GPU wants large products instead.
  const int64_t bound =
      options_.loops ? std::min(options_.max_logit_elements, kChunkElements)
                     : options_.max_logit_elements;
  chunk_ = std::max<int64_t>(kRowRounding,
                             bound / vocab / kRowRounding * kRowRounding);
  kept_.clear();
  const bool keep = keep_logits && n * vocab <= options_.max_logit_elements;
  Output out;
  out.logprobs.resize(static_cast<size_t>(n));
  for (int64_t first = 0; first < n; first += chunk_) {
    at::Tensor logits = Logits(first, std::min(chunk_, padded_ - first));
    StatsOf(logits, first, std::min(chunk_, n - first), &out);
    if (keep) kept_.push_back(std::move(logits));
  }
  out.entropies = entropies_;
  return out;
}

at::Tensor LanguageHead::Backward(const Gradient& gradient) {
  const int64_t n = static_cast<int64_t>(targets_.size());
  at::Tensor out = at::empty_like(hidden_);
  for (int64_t first = 0; first < n; first += chunk_) {
    const int64_t rows = std::min(chunk_, padded_ - first);
    at::Tensor logits = kept_.empty()
                            ? Logits(first, rows)
                            : kept_[static_cast<size_t>(first / chunk_)];
    GradientInPlace(logits, first, std::min(chunk_, n - first), gradient);
    out.narrow(0, first, rows).copy_(MatMul(logits, options_.weight));
    gradient.weight.add_(MatMul(logits.t(), hidden_.narrow(0, first, rows)));
    if (gradient.bias.defined()) {
      gradient.bias.add_(logits.sum(/*dim=*/0),
                         /*alpha=*/1.0 / options_.temperature);
    }
  }
  if (options_.temperature != 1.0) out.mul_(1.0 / options_.temperature);
  return out.narrow(0, 0, n);
}

}  // namespace cox
