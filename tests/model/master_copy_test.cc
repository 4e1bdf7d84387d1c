// The bfloat16 weights that Adam's update writes stand for casts of the float32
// ones, bit for bit.

#include "lib/model/master_copy.h"

#include <algorithm>

#include "ATen/ops/arange.h"
#include "ATen/ops/mm.h"
#include "ATen/ops/randn.h"
#include "c10/core/GradMode.h"
#include "gtest/gtest.h"
#include "lib/model/api.h"
#include "tests/gpu/host_gpu.h"
#include "tests/model/test_models.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

TEST(StandForTest, PassesTheGradientOfACast) {
  const at::Tensor x = at::randn({3, 8}).to(at::kBFloat16);
  at::Tensor gradients[2];
  for (const bool copy : {false, true}) {
    at::Tensor master = at::arange(32, at::kFloat).div(7).view({4, 8});
    master.requires_grad_(true);
    c10::AutoGradMode with_graph(true);
    const at::Tensor weight =
        copy ? StandFor(master, master.detach().to(at::kBFloat16))
             : master.to(at::kBFloat16);
    const at::Tensor out = at::mm(x, weight.t());
    out.mul(out).sum().backward();
    gradients[copy ? 1 : 0] = master.grad();
  }
  EXPECT_EQ(gradients[1].scalar_type(), at::kFloat);
  EXPECT_TRUE(gradients[0].equal(gradients[1]));
}

EngineOptions Bf16(const CoxGpuApi* kernels) {
  EngineOptions options;
  options.portable = true;
  options.dtype = "bf16";
  options.kernels = kernels;
  return options;
}

absl::Status Loss(const LogprobOutput& out, LogprobGradient* gradient) {
  gradient->logprobs.assign(out.logprobs.size(), -0.1f);
  return absl::OkStatus();
}

struct Passes {
  std::vector<float> logprobs, gradients;
};
Passes PassesOf(TrainEngine& engine) {
  const TokenBatch batch = SmallBatch(engine.config());
  auto out = engine.Logprobs(batch, 1, false);
  EXPECT_OK(out);
  engine.ZeroGradients();
  EXPECT_OK(engine.AccumulateLogprobs(batch, 1, false, Loss));
  return {std::move(out->logprobs),
          {engine.Gradients().begin(), engine.Gradients().end()}};
}

// Log-probs and gradients of `engine` are those of one that is loaded with its
// parameters, and so casts them all.
void ExpectCopiesAreCasts(TrainEngine& engine, const EngineOptions& options) {
  // First: what the host reads is copied back, and cast, before the next pass.
  const Passes own = PassesOf(engine);
  ASSERT_OK_AND_ASSIGN(
      const auto snapshot,
      SnapshotFromFloats(engine.layout(), engine.Parameters()));
  const auto fresh = LoadedTrainEngine(snapshot, options);
  const Passes cast = PassesOf(*fresh);
  EXPECT_EQ(own.logprobs, cast.logprobs);
  EXPECT_EQ(own.gradients, cast.gradients);
}

TEST(MasterCopyTest, FollowsUpdatesAndWhatTheHostWrites) {
  for (const CoxGpuApi* kernels :
       {HostGpu(), static_cast<const CoxGpuApi*>(nullptr)}) {
    for (const std::string& name : TinyNames()) {
      SCOPED_TRACE(name);
      const EngineOptions options = Bf16(kernels);
      auto engine =
          LoadedTrainEngine(RandomSnapshot(TinyConfig(name), 5), options);
      const TokenBatch batch = SmallBatch(engine->config());
      ASSERT_OK_AND_ASSIGN(const auto before,
                           engine->Logprobs(batch, 1, false));
      const int copies = HostGpuCalls().bf16_copies;
      for (int64_t t = 1; t <= 2; ++t) {
        engine->ZeroGradients();
        ASSERT_OK(engine->AccumulateLogprobs(batch, 1, false, Loss));
        const AdamStep step = {.step = t, .lr = 0.02};
        ASSERT_OK(engine->device()->AdamUpdate(
            0, engine->layout().arena_bytes / sizeof(float),
            AdamFactorsOf<float>(AdamOptions(), step)));
      }
      EXPECT_EQ(HostGpuCalls().bf16_copies,
                copies + (kernels != nullptr ? 2 : 0));
      ASSERT_OK_AND_ASSIGN(const auto after, engine->Logprobs(batch, 1, false));
      EXPECT_NE(after.logprobs, before.logprobs);
      ExpectCopiesAreCasts(*engine, options);
      for (float& w : engine->Parameters()) w *= 1.01f;
      ExpectCopiesAreCasts(*engine, options);
    }
  }
}

}  // namespace
}  // namespace cox
