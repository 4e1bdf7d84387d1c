// The vectors of docs/algorithms.md §12.

#include "lib/model/layers.h"

#include <cmath>

#include "ATen/ops/cos.h"
#include "ATen/ops/sin.h"
#include "ATen/ops/tensor.h"
#include "gtest/gtest.h"
#include "lib/model/rotary.h"
#include "tests/model/test_models.h"

namespace cox {
namespace {

at::Tensor Row(const std::vector<double>& values) { return at::tensor(values); }

void ExpectNear(const at::Tensor& actual, const std::vector<double>& expected,
                double tolerance) {
  ASSERT_EQ(actual.numel(), static_cast<int64_t>(expected.size()));
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[static_cast<int64_t>(i)].item<double>(), expected[i],
                tolerance)
        << i;
  }
}

TEST(LayersTest, GeluNewAndErfGelu) {
  ExpectNear(Gelu(Row({1, -1}), /*approximate=*/true), {.841192, -.158808},
             1e-6);
  ExpectNear(Gelu(Row({1}), /*approximate=*/false), {.841345}, 1e-6);
}

TEST(LayersTest, RmsNorm) {
  ExpectNear(RmsNorm(Row({1, 2, 3, 4}), Row({1, 1, 1, 1}), 1e-6),
             {.365148, .730297, 1.095445, 1.460593}, 1e-6);
  // The weight comes last.
  ExpectNear(RmsNorm(Row({1, 2, 3, 4}), Row({2, 1, 1, 0}), 1e-6),
             {.730297, .730297, 1.095445, 0}, 1e-6);
}

TEST(LayersTest, RotaryTurnsHalvesNotPairs) {
  // head_dim 4, position 1, theta 1e4: angles 1 and 0.01.
  const at::Tensor angles = Row({1, .01, 1, .01});
  ExpectNear(Rotate(Row({1, 2, 3, 4}), angles.cos(), angles.sin()),
             {-1.984111, 1.959901, 2.462378, 4.019800}, 1e-6);
}

TEST(LayersTest, FrequenciesOfLlama3) {
  ModelConfig config = TinyConfig("llama3");
  config.head_dim = 64;
  config.rope_theta = 5e5;
  config.rope_scaling = RopeScaling();
  config.rope_scaling->factor = 32;
  config.rope_scaling->low_freq_factor = 1;
  config.rope_scaling->high_freq_factor = 4;
  config.rope_scaling->original_max_position = 8192;
  const std::vector<double> f = RotaryFrequencies(config);
  ASSERT_EQ(f.size(), 32u);
  EXPECT_NEAR(f[14], .003211446, 1e-9);
  EXPECT_NEAR(f[15], .001290548, 1e-9);
  EXPECT_NEAR(f[16], .000429557, 1e-9);
  EXPECT_NEAR(f[17], .0000970830, 1e-9);
  EXPECT_NEAR(f[18], .0000194616, 1e-9);
}

}  // namespace
}  // namespace cox
