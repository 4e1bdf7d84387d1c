#ifndef COX_LIB_ALGO_SAMPLING_H_
#define COX_LIB_ALGO_SAMPLING_H_

// From logits to a token and its behaviour log-prob (docs/algorithms.md §10).

#include <cstdint>
#include <span>
#include <vector>

#include "lib/algo/shape.h"

namespace cox {

// Applied in this order: repetition penalty; forbidden ids and EOS before
// min_new_tokens := −inf; temperature; top-k; top-p; min-p; softmax.
struct SamplingOptions {
  double temperature = 1;         // >= 0; 0 = argmax, log-prob 0, not trainable
  int64_t top_k = 0;              // 0 = off
  double top_p = 1;               // in (0, 1]
  double min_p = 0;               // in [0, 1]
  double repetition_penalty = 1;  // > 0
  std::vector<int64_t> forbid_ids = {};
  int64_t min_new_tokens = 0;
  std::vector<int64_t> eos_ids = {};
  absl::Status Validate() const;
};

struct SampledToken {
  int64_t token = 0;
  double logprob = 0;  // ℓ_beh: under the distribution drawn from
};

// Processes one row at a time and draws from it. Buffers are reused: after the
// first row of a vocabulary size nothing is allocated. Thread-compatible.
//
//   TokenSampler sampler;
//   COX_RETURN_IF_ERROR(sampler.Process(logits, options, context, generated));
//   SampledToken t = sampler.Draw(TokenUniform(seed, prompt, sample, pos));
class TokenSampler {
 public:
  // `context`: prompt and response ids so far, read only if a repetition
  // penalty is set; `generated`: response tokens so far. INVALID_ARGUMENT
  // ("logits": NaN, +inf, nothing left to draw from; or an id outside the
  // vocabulary). REQUIRES: options.Validate() is OK.
  template <typename T>
  absl::Status Process(std::span<const T> logits,
                       const SamplingOptions& options,
                       std::span<const int32_t> context, int64_t generated);

  // First id in id order with CDF > u, the last kept id if rounding leaves
  // none. REQUIRES: a successful Process, u in [0, 1).
  SampledToken Draw(double u) const;

  // −inf where removed. REQUIRES: a successful Process.
  double Logprob(int64_t id) const;
  bool Kept(int64_t id) const;
  int64_t vocab() const { return static_cast<int64_t>(scaled_.size()); }

 private:
  void MaskTopK(int64_t k);
  void MaskTopP(double p);
  void MaskMinP(double min_p);
  void Normalise();
  void KeepOnlyArgmax();

  std::vector<double> scaled_;  // (z − max)/τ, −inf = removed
  std::vector<double> weight_;  // exp(scaled), 0 = removed
  std::vector<double> order_;   // scratch of top-k
  std::vector<int64_t> ids_;    // scratch of top-p
  std::vector<uint32_t> seen_;  // stamp per id, for distinct context tokens
  uint32_t stamp_ = 0;
  double total_ = 0;  // Σ weight in id order
  double log_total_ = 0;
  int64_t last_kept_ = 0;
};

}  // namespace cox

#endif  // COX_LIB_ALGO_SAMPLING_H_
