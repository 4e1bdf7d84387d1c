#ifndef COX_LIB_ENGINE_GENERATE_ROWS_H_
#define COX_LIB_ENGINE_GENERATE_ROWS_H_

// The part of generation that every PolicyEngine shares: validation of the
// request, and per row the draw, the record and the decision to stop.

#include <cstdint>
#include <span>
#include <vector>

#include "lib/algo/sampling.h"
#include "lib/base/status.h"
#include "lib/data/stop_strings.h"
#include "lib/data/tokenizer.h"
#include "lib/engine/engine.h"

namespace cox {

// INVALID_ARGUMENT names the field: sizes that differ, an empty prompt, an id
// outside the vocabulary, no room for `max_new_tokens` positions.
absl::Status ValidateGenerateRequest(const GenerateRequest& request,
                                     const ModelConfig& config);

// The request's sampling of one row: scheduled lengths forbid EOS before the
// last token.
SamplingOptions RowSampling(const GenerateRequest& request, size_t row);

// Rows of one request while they grow. Thread-compatible.
class GenerateRows {
 public:
  // `request` must outlive this and have been validated.
  explicit GenerateRows(const GenerateRequest& request);

  // Draws the next token of `row` from `logits` [V] and records it. Token t
  // uses TokenUniform(seed, prompt id, sample index, t), so that a row never
  // depends on the others (docs/algorithms.md §10).
  absl::Status Sample(int64_t row, std::span<const float> logits);

  // Records a token that was drawn elsewhere by the same rule.
  void Record(int64_t row, int32_t token, float logprob);

  bool finished(int64_t row) const {
    return finished_[static_cast<size_t>(row)] != 0;
  }
  int32_t last_token(int64_t row) const {
    return result_.tokens[static_cast<size_t>(row)].back();
  }
  // Rows that still grow, ascending.
  std::vector<int64_t> Active() const;
  GenerateResult Take() { return std::move(result_); }

 private:
  // Text of one row, for stop strings.
  struct RowText {
    StreamDecoder decoder;
    StopScanner scanner;
  };
  bool Stops(size_t row);

  const GenerateRequest& request_;
  TokenSampler sampler_;
  std::vector<std::vector<int32_t>> context_;  // only with a penalty
  std::vector<RowText> texts_;                 // only with stop strings
  std::vector<uint8_t> finished_;
  GenerateResult result_;
};

}  // namespace cox

#endif  // COX_LIB_ENGINE_GENERATE_ROWS_H_
