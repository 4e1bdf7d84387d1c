#include "lib/model/rotary.h"

#include <algorithm>
#include <cmath>

namespace cox {
namespace {

constexpr double kTwoPi = 6.283185307179586476925286766559;

double Llama3(double f, const RopeScaling& s) {
  const double original = static_cast<double>(s.original_max_position);
  const double wavelength = kTwoPi / f;
  if (wavelength > original / s.low_freq_factor) return f / s.factor;
  if (wavelength < original / s.high_freq_factor) return f;
  const double share = (original / wavelength - s.low_freq_factor) /
                       (s.high_freq_factor - s.low_freq_factor);
  return (1.0 - share) * f / s.factor + share * f;
}

// The pairs, as a real number, that turn `rotations` times over the original
// length.
double YarnPair(double rotations, const ModelConfig& config) {
  const double original =
      static_cast<double>(config.rope_scaling->original_max_position);
  return static_cast<double>(config.head_dim) *
         std::log(original / (rotations * kTwoPi)) /
         (2.0 * std::log(config.rope_theta));
}

// Pairs below `low` keep their frequency, those above `high` are divided by the
// factor, in between linearly (Peng et al., arXiv:2309.00071, as in
// transformers).
void Yarn(const ModelConfig& config, std::vector<double>& frequencies) {
  const RopeScaling& s = *config.rope_scaling;
  double low = YarnPair(s.beta_fast, config);
  double high = YarnPair(s.beta_slow, config);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.head_dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double share =
        std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] *= share / s.factor + (1.0 - share);
  }
}

}  // namespace

std::vector<double> RotaryFrequencies(const ModelConfig& config) {
  std::vector<double> out;
  for (int64_t i = 0; 2 * i < config.head_dim; ++i) {
    double f =
        std::pow(config.rope_theta, -2.0 * static_cast<double>(i) /
                                        static_cast<double>(config.head_dim));
    if (config.rope_scaling.has_value()) {
      const RopeScaling& s = *config.rope_scaling;
      if (s.kind == RopeKind::kLlama3) f = Llama3(f, s);
      if (s.kind == RopeKind::kLinear) f /= s.factor;
    }
    out.push_back(f);
  }
  if (config.rope_scaling.has_value() &&
      config.rope_scaling->kind == RopeKind::kYarn) {
    Yarn(config, out);
  }
  return out;
}

double RotaryAmplitude(const ModelConfig& config) {
  if (!config.rope_scaling.has_value() ||
      config.rope_scaling->kind != RopeKind::kYarn) {
    return 1.0;
  }
  const RopeScaling& s = *config.rope_scaling;
  const double derived = s.factor <= 1.0 ? 1.0 : 0.1 * std::log(s.factor) + 1.0;
  return s.attention_factor.value_or(derived);
}

}  // namespace cox
