#ifndef COX_REWARD_SEQUENCE_BATCH_H_
#define COX_REWARD_SEQUENCE_BATCH_H_

// From sequences of a request to one padded batch and back. A request is one
// batch, padded to its own longest sequence: the same request gives the same
// bits whatever else the server is doing.

#include <span>
#include <vector>

#include "lib/base/status.h"
#include "lib/engine/engine.h"
#include "reward/scorers/scorer.h"

namespace cox {

// Rows prompt + response, right-padded with 0; `scored` marks the positions
// whose next token is a response token. INVALID_ARGUMENT: no sequence, an
// empty prompt, or instructions in only some of them.
absl::StatusOr<TokenBatch> MakeSequenceBatch(
    std::span<const ScoreInput> inputs);

// Log-probs of each response token, [inputs][response length], nats. `engine`
// holds the reference policy. INTERNAL when one is not finite; rounding above
// 0 is cut.
absl::StatusOr<std::vector<std::vector<float>>> ReferenceLogprobs(
    ScoreEngine* engine, std::span<const ScoreInput> inputs,
    double temperature);

}  // namespace cox

#endif  // COX_REWARD_SEQUENCE_BATCH_H_
