#include "lib/algo/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace cox {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

absl::Status CheckId(std::string_view name, int64_t id, int64_t vocab) {
  if (id >= 0 && id < vocab) [[likely]]
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(name), ": id ", id, " outside the vocabulary of ", vocab));
}

}  // namespace

absl::Status SamplingOptions::Validate() const {
  COX_RETURN_IF_ERROR(CheckNotNegative("temperature", temperature));
  COX_RETURN_IF_ERROR(CheckNotNegative("top_k", static_cast<double>(top_k)));
  if (!(top_p > 0 && top_p <= 1)) {
    return OutOfRange("top_p", top_p, "must be in (0, 1]");
  }
  COX_RETURN_IF_ERROR(CheckRange("min_p", min_p, 0, 1));
  COX_RETURN_IF_ERROR(CheckPositive("repetition_penalty", repetition_penalty));
  COX_RETURN_IF_ERROR(
      CheckNotNegative("min_new_tokens", static_cast<double>(min_new_tokens)));
  for (const int64_t id : forbid_ids) {
    COX_RETURN_IF_ERROR(
        CheckNotNegative("forbid_ids", static_cast<double>(id)));
  }
  for (const int64_t id : eos_ids) {
    COX_RETURN_IF_ERROR(CheckNotNegative("eos_ids", static_cast<double>(id)));
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status TokenSampler::Process(std::span<const T> logits,
                                   const SamplingOptions& options,
                                   std::span<const int32_t> context,
                                   int64_t generated) {
  const int64_t size = static_cast<int64_t>(logits.size());
  scaled_.resize(size);
  weight_.resize(size);
  bool valid = true;
  for (int64_t i = 0; i < size; ++i) {
    const double z = static_cast<double>(logits[i]);
    valid = valid && z < kInf;  // false for NaN too
    scaled_[i] = z;
  }
  if (!valid) return absl::InvalidArgumentError("logits: NaN or +inf");

  if (options.repetition_penalty != 1) {
    if (static_cast<int64_t>(seen_.size()) != size ||
        stamp_ == std::numeric_limits<uint32_t>::max()) {
      seen_.assign(size, 0);
      stamp_ = 0;
    }
    ++stamp_;
    for (const int32_t id : context) {
      COX_RETURN_IF_ERROR(CheckId("context", id, size));
      if (seen_[id] == stamp_) continue;
      seen_[id] = stamp_;
      double& z = scaled_[id];
      z = z < 0 ? z * options.repetition_penalty
                : z / options.repetition_penalty;
    }
  }
  for (const int64_t id : options.forbid_ids) {
    COX_RETURN_IF_ERROR(CheckId("forbid_ids", id, size));
    scaled_[id] = -kInf;
  }
  if (generated < options.min_new_tokens) {
    for (const int64_t id : options.eos_ids) {
      COX_RETURN_IF_ERROR(CheckId("eos_ids", id, size));
      scaled_[id] = -kInf;
    }
  }
  double top = -kInf;
  for (const double z : scaled_) top = std::max(top, z);
  if (top == -kInf) {
    return absl::InvalidArgumentError("logits: no token is left to draw");
  }
  if (options.temperature == 0) {
    KeepOnlyArgmax();
    return absl::OkStatus();
  }
  // Subtracting first keeps tiny temperatures finite.
  for (double& z : scaled_) z = (z - top) / options.temperature;
  if (options.top_k > 0) MaskTopK(options.top_k);
  for (int64_t i = 0; i < size; ++i) weight_[i] = std::exp(scaled_[i]);
  if (options.top_p < 1) MaskTopP(options.top_p);
  if (options.min_p > 0) MaskMinP(options.min_p);
  Normalise();
  return absl::OkStatus();
}

void TokenSampler::KeepOnlyArgmax() {
  const int64_t best =
      std::max_element(scaled_.begin(), scaled_.end()) - scaled_.begin();
  std::fill(scaled_.begin(), scaled_.end(), -kInf);
  std::fill(weight_.begin(), weight_.end(), 0.0);
  scaled_[best] = 0;
  weight_[best] = 1;
  Normalise();
}

void TokenSampler::MaskTopK(int64_t k) {
  if (k >= vocab()) return;
  order_.assign(scaled_.begin(), scaled_.end());
  std::nth_element(order_.begin(), order_.begin() + (k - 1), order_.end(),
                   std::greater<double>());
  const double threshold = order_[k - 1];
  for (double& z : scaled_) {
    if (z < threshold) z = -kInf;
  }
}

void TokenSampler::MaskTopP(double p) {
  double sum = 0;
  int64_t alive = 0;
  for (const double w : weight_) {
    sum += w;
    alive += w > 0;
  }
  // Tokens below budget/alive all go, since together they stay below the
  // budget; only the others need sorting.
  const double budget = 1 - p;
  const double surely_removed = budget / static_cast<double>(alive);
  double cumulative = 0;
  ids_.clear();
  ids_.reserve(weight_.size());  // once per vocabulary size
  for (int64_t i = 0; i < vocab(); ++i) {
    const double probability = weight_[i] / sum;
    if (probability < surely_removed) {
      cumulative += probability;
      scaled_[i] = -kInf;
      weight_[i] = 0;
    } else if (scaled_[i] > -kInf) {
      ids_.push_back(i);
    }
  }
  // Least probable first, the higher id first among equals.
  std::sort(ids_.begin(), ids_.end(), [this](int64_t a, int64_t b) {
    return scaled_[a] != scaled_[b] ? scaled_[a] < scaled_[b] : a > b;
  });
  for (size_t i = 0; i + 1 < ids_.size(); ++i) {
    const int64_t id = ids_[i];
    cumulative += weight_[id] / sum;
    if (cumulative > budget) break;
    scaled_[id] = -kInf;
    weight_[id] = 0;
  }
}

void TokenSampler::MaskMinP(double min_p) {
  // The most probable token has weight exp(0) = 1 and survives every mask.
  for (int64_t i = 0; i < vocab(); ++i) {
    if (weight_[i] < min_p) {
      scaled_[i] = -kInf;
      weight_[i] = 0;
    }
  }
}

void TokenSampler::Normalise() {
  total_ = 0;
  for (int64_t i = 0; i < vocab(); ++i) {
    total_ += weight_[i];
    if (weight_[i] > 0) last_kept_ = i;
  }
  log_total_ = std::log(total_);
}

SampledToken TokenSampler::Draw(double u) const {
  double cumulative = 0;
  for (int64_t i = 0; i < last_kept_; ++i) {
    cumulative += weight_[i];
    if (cumulative / total_ > u) return {i, Logprob(i)};
  }
  return {last_kept_, Logprob(last_kept_)};
}

double TokenSampler::Logprob(int64_t id) const {
  return scaled_[id] - log_total_;
}

bool TokenSampler::Kept(int64_t id) const { return scaled_[id] > -kInf; }

template absl::Status TokenSampler::Process<float>(std::span<const float>,
                                                   const SamplingOptions&,
                                                   std::span<const int32_t>,
                                                   int64_t);
template absl::Status TokenSampler::Process<double>(std::span<const double>,
                                                    const SamplingOptions&,
                                                    std::span<const int32_t>,
                                                    int64_t);

}  // namespace cox
