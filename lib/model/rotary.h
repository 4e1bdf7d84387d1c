#ifndef COX_LIB_MODEL_ROTARY_H_
#define COX_LIB_MODEL_ROTARY_H_

#include <vector>

#include "lib/engine/model_config.h"

namespace cox {

// f_i of docs/algorithms.md §12, i < head_dim / 2, scaling applied: position p
// turns pair i by p f_i.
std::vector<double> RotaryFrequencies(const ModelConfig& config);

// Factor of cos and sin: 1, but for yarn.
double RotaryAmplitude(const ModelConfig& config);

}  // namespace cox

#endif  // COX_LIB_MODEL_ROTARY_H_
