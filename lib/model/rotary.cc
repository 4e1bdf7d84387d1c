#include "lib/model/rotary.h"

#include <cmath>

namespace cox {

std::vector<double> RotaryFrequencies(const ModelConfig& config) {
  constexpr double kTwoPi = 6.283185307179586476925286766559;
  std::vector<double> out;
  for (int64_t i = 0; 2 * i < config.head_dim; ++i) {
    double f = std::pow(config.rope_theta,
                        -2.0 * static_cast<double>(i) /
                            static_cast<double>(config.head_dim));
    if (config.rope_scaling.has_value()) {
      const RopeScaling& s = *config.rope_scaling;
      const double original = static_cast<double>(s.original_max_position);
      const double wavelength = kTwoPi / f;
      if (wavelength > original / s.low_freq_factor) {
        f /= s.factor;
      } else if (wavelength >= original / s.high_freq_factor) {
        const double share = (original / wavelength - s.low_freq_factor) /
                             (s.high_freq_factor - s.low_freq_factor);
        f = (1.0 - share) * f / s.factor + share * f;
      }
    }
    out.push_back(f);
  }
  return out;
}

}  // namespace cox
