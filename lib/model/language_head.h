#ifndef COX_LIB_MODEL_LANGUAGE_HEAD_H_
#define COX_LIB_MODEL_LANGUAGE_HEAD_H_

// Log-probs of given tokens under softmax(h W^T + b), and their gradient, in
// row chunks, outside autograd: forward needs one pass over the logits and
// backward one more, in place, and no [rows, vocab] log-softmax is ever made.

#include <cstdint>
#include <vector>

#include "ATen/core/Tensor.h"

namespace cox {

class LanguageHead {
 public:
  struct Options {
    at::Tensor weight;  // [V, d] float32
    at::Tensor bias;    // [V] or undefined
    double temperature = 1.0;
    // Bound of rows * V held at once. Fits whole: kept for Backward();
    // otherwise computed twice.
    int64_t max_logit_elements = 0;
    // Our loops over host memory; else LibTorch's operators on any device.
    bool loops = true;
  };
  // Row outputs [n].
  struct Output {
    std::vector<float> logprobs;
    std::vector<float> entropies;
  };
  struct Gradient {
    std::vector<float> logprobs;   // [n]
    std::vector<float> entropies;  // [n] or empty
    at::Tensor weight;             // [V, d]: added to
    at::Tensor bias;               // [V] or undefined: added to
  };

  explicit LanguageHead(Options options) : options_(std::move(options)) {}

  // `hidden` [n, d] float32 without graph, `targets` [n].
  Output Forward(const at::Tensor& hidden, std::vector<int32_t> targets,
                 bool keep_logits);
  // d loss / d hidden [n, d]. REQUIRES: Forward() before.
  at::Tensor Backward(const Gradient& gradient);

 private:
  at::Tensor Logits(int64_t first, int64_t rows) const;
  // Of `real` rows from `first`: outputs, and logits := their gradient.
  void StatsOf(const at::Tensor& logits, int64_t first, int64_t real,
               Output* out);
  void GradientInPlace(at::Tensor& logits, int64_t first, int64_t real,
                       const Gradient& gradient) const;

  Options options_;
  at::Tensor hidden_;   // [padded_, d], divided by the temperature
  at::Tensor bias_;     // divided by the temperature, or undefined
  int64_t padded_ = 0;  // rows, rounded up; filler is 0
  std::vector<int32_t> targets_;
  at::Tensor target_ids_;  // [n, 1] int64, without loops
  std::vector<float> log_sums_, entropies_;
  int64_t chunk_ = 1;
  std::vector<at::Tensor> kept_;  // logits per chunk, or empty
};

}  // namespace cox

#endif  // COX_LIB_MODEL_LANGUAGE_HEAD_H_
