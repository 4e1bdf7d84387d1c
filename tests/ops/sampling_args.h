#ifndef COX_TESTS_OPS_SAMPLING_ARGS_H_
#define COX_TESTS_OPS_SAMPLING_ARGS_H_

// The processing arguments that sampling and generation ops share
// (docs/ops-protocol.md §6).

#include "lib/algo/sampling.h"
#include "tests/ops/args.h"

namespace cox::ops {

#define COX_OPS_SAMPLING_ARGS                                     \
  "temperature", "top_k", "top_p", "min_p", "repetition_penalty", \
      "forbid_ids", "min_new_tokens", "eos_ids"

// Defaults for what is absent; validated.
absl::StatusOr<SamplingOptions> ReadSampling(const Args& args);

}  // namespace cox::ops

#endif  // COX_TESTS_OPS_SAMPLING_ARGS_H_
