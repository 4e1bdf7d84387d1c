#ifndef COX_LIB_MODEL_DROPOUT_H_
#define COX_LIB_MODEL_DROPOUT_H_

// Dropout of a training pass (docs/algorithms.md §13.1). An activation is
// multiplied by 0 with probability p, else by 1 / (1 - p). The choice is a
// function of the sequence's key, the place in the network and the place in the
// sequence: not of the other rows of a batch, of padding or of the rank.

#include <cstdint>
#include <vector>

#include "ATen/core/Tensor.h"

namespace cox {

// Places of a layer; kEmbedding belongs to layer 0.
enum class DropoutSite : uint32_t {
  kEmbedding = 0,          // token plus position
  kSelfProbabilities = 1,  // softmax of the scores
  kSelfOutput = 2,         // output projection, before the residual sum
  kCrossProbabilities = 3,
  kCrossOutput = 4,
  kHidden = 5,       // feed-forward, after its activation function
  kFeedForward = 6,  // feed-forward output, before the residual sum
};

class Dropout {
 public:
  struct Options {
    double rate = 0;               // p in [0, 1), taken to a multiple of 2^-16
    uint32_t stack = 0;            // 0 decoder, 1 encoder
    std::vector<uint64_t> keys;    // [B]
    std::vector<int32_t> lengths;  // [B] tokens of each sequence
    // Rows between the first tokens of two sequences; 0: they lie one after
    // the other without gaps.
    int64_t stride = 0;
    std::vector<int32_t> memory_lengths;  // [B] encoder tokens, for kCross*
  };
  explicit Dropout(Options options);

  // `x` [N, width] of the stack's rows times its factors. Rows of no sequence
  // become 0.
  at::Tensor Apply(const at::Tensor& x, int64_t layer, DropoutSite site) const;

  // Factors of `probabilities` [B, heads, L, keys] of a padded grid; 0 at
  // padding.
  at::Tensor Factors(const at::Tensor& probabilities, int64_t layer,
                     DropoutSite site) const;

 private:
  // Fills `out` with the first `count` factors of a sequence at a place.
  void Fill(size_t sequence, int64_t layer, DropoutSite site, int64_t count,
            float* out) const;

  Options options_;
  uint32_t threshold_;  // dropped below it, of 2^16
  float scale_;
};

}  // namespace cox

#endif  // COX_LIB_MODEL_DROPOUT_H_
