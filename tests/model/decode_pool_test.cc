// The decode path of a GPU, its kernels and recorded steps too, run on host
// memory by a stand-in for the plugin.

#include "lib/model/decode_pool.h"

#include <algorithm>
#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/model/api.h"
#include "tests/gpu/host_gpu.h"
#include "tests/model/test_models.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;

EngineOptions OnHostGpu(const std::string& dtype = "fp32") {
  EngineOptions options;
  options.portable = true;
  options.kernels = HostGpu();
  options.dtype = dtype;
  return options;
}

std::unique_ptr<PolicyEngine> Engine(const EngineOptions& options) {
  auto engine = MakePolicyEngine(options);
  EXPECT_OK(engine);
  return *std::move(engine);
}

// Loaded with `snapshot` each: the engine under test and the CPU's own loops.
struct Pair {
  std::unique_ptr<PolicyEngine> gpu = Engine(OnHostGpu());
  std::unique_ptr<PolicyEngine> loops = Engine(EngineOptions());
  void Load(const std::shared_ptr<const Snapshot>& snapshot) {
    ASSERT_OK(gpu->Load(snapshot));
    ASSERT_OK(loops->Load(snapshot));
  }
  void ExpectSame(const GenerateRequest& request) {
    ASSERT_OK_AND_ASSIGN(const auto a, loops->Generate(request));
    ASSERT_OK_AND_ASSIGN(const auto b, gpu->Generate(request));
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.finish, b.finish);
    for (size_t r = 0; r < a.logprobs.size(); ++r) {
      for (size_t t = 0; t < a.logprobs[r].size(); ++t) {
        ASSERT_NEAR(b.logprobs[r][t], a.logprobs[r][t], 1e-5);
      }
    }
  }
};

TEST(BucketOfTest, RoundsUpToFewSizes) {
  const auto bucket = [](int64_t slots, int64_t positions, int64_t memory) {
    return BucketOf({slots, positions, memory});
  };
  EXPECT_EQ(bucket(1, 1, 0), (DecodeSize{1, 64, 0}));
  EXPECT_EQ(bucket(5, 65, 3), (DecodeSize{8, 128, 64}));
  EXPECT_EQ(bucket(64, 1024, 0), (DecodeSize{64, 1024, 0}));
  EXPECT_EQ(bucket(64, 1025, 0), (DecodeSize{64, 2048, 0}));
  EXPECT_EQ(bucket(64, 33000, 0), (DecodeSize{64, 33792, 0}));
}

TEST(HostGpuTest, KernelsDrawTheTokensOfTheLoops) {
  for (const std::string& name : TinyNames()) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    Pair pair;
    pair.Load(SineSnapshot(config));
    const HostGpuCounts before = HostGpuCalls();
    for (size_t rows : {1, 5, 16}) {
      GenerateRequest request = SomeRequest(config, rows);
      pair.ExpectSame(request);
      request.sampling.forbid_ids = {1, 3};
      request.sampling.min_new_tokens = 4;
      request.sampling.top_k = 5;
      pair.ExpectSame(request);
    }
    EXPECT_GT(HostGpuCalls().samples, before.samples);
    EXPECT_GT(HostGpuCalls().attends, before.attends);
    const bool rotary = name != "gpt2" && name != "encdec";
    EXPECT_EQ(HostGpuCalls().rotations > before.rotations, rotary);
  }
}

TEST(HostGpuTest, Bf16AgreesWithTheOperators) {
  for (const std::string name : {"llama", "qwen3"}) {
    SCOPED_TRACE(name);
    const auto snapshot = SineSnapshot(TinyConfig(name));
    EngineOptions operators = OnHostGpu("bf16");
    operators.kernels = nullptr;
    auto a = Engine(operators), b = Engine(OnHostGpu("bf16"));
    ASSERT_OK(a->Load(snapshot));
    ASSERT_OK(b->Load(snapshot));
    GenerateRequest request = SomeRequest(TinyConfig(name), 6);
    request.sampling.top_p = 1;
    ASSERT_OK_AND_ASSIGN(const auto x, a->Generate(request));
    ASSERT_OK_AND_ASSIGN(const auto y, b->Generate(request));
    for (size_t r = 0; r < 6; ++r) {
      // Until rounding makes them draw apart.
      for (size_t t = 0; t < std::min(x.tokens[r].size(), y.tokens[r].size());
           ++t) {
        if (x.tokens[r][t] != y.tokens[r][t]) break;
        EXPECT_NEAR(x.logprobs[r][t], y.logprobs[r][t], 1e-2);
      }
    }
    EXPECT_EQ(x.tokens[0][0], y.tokens[0][0]);
  }
}

TEST(DecodePoolTest, RequestsOfOneBucketShareOneRecording) {
  const ModelConfig config = TinyConfig("llama");
  Pair pair;
  pair.Load(SineSnapshot(config));
  const HostGpuCounts before = HostGpuCalls();
  for (size_t rows : {8, 5, 7, 6}) {
    pair.ExpectSame(SomeRequest(config, rows));
  }
  EXPECT_EQ(HostGpuCalls().records, before.records + 1);
  EXPECT_GT(HostGpuCalls().replays, before.replays + 8);
  // Drawn on the host, from the same graph.
  GenerateRequest penalty = SomeRequest(config, 8);
  penalty.sampling.repetition_penalty = 1.2;
  pair.ExpectSame(penalty);
  GenerateRequest other = SomeRequest(config, 8);
  other.sampling.temperature = 0.7;
  other.seed = 10;
  pair.ExpectSame(other);
  EXPECT_EQ(HostGpuCalls().records, before.records + 1);
  // A smaller bucket lies in the same storage: a graph of its own, once.
  for (size_t rows : {2, 8, 2, 8}) {
    pair.ExpectSame(SomeRequest(config, rows));
  }
  EXPECT_EQ(HostGpuCalls().records, before.records + 2);
  EXPECT_EQ(HostGpuCalls().graphs, before.graphs + 2);
  // A larger one moves it: all are recorded anew.
  for (size_t rows : {16, 8, 2}) {
    pair.ExpectSame(SomeRequest(config, rows));
  }
  EXPECT_EQ(HostGpuCalls().records, before.records + 5);
  EXPECT_EQ(HostGpuCalls().graphs, before.graphs + 3);
}

TEST(DecodePoolTest, WeightsInPlaceKeepTheRecordingAndAnotherNetworkDoesNot) {
  const HostGpuCounts before = HostGpuCalls();
  for (const std::string dtype : {"fp32", "bf16"}) {
    SCOPED_TRACE(dtype);
    const int records = HostGpuCalls().records;
    const ModelConfig config = TinyConfig("qwen3");
    const GenerateRequest request = SomeRequest(config, 4);
    auto engine = Engine(OnHostGpu(dtype));
    std::vector<std::vector<std::vector<int32_t>>> drawn;
    for (uint64_t version : {1, 2, 3}) {
      const auto snapshot = RandomSnapshot(config, version);
      ASSERT_OK(engine->Load(snapshot));
      ASSERT_OK_AND_ASSIGN(const auto a, engine->Generate(request));
      auto fresh = Engine(OnHostGpu(dtype));
      ASSERT_OK(fresh->Load(snapshot));
      ASSERT_OK_AND_ASSIGN(const auto b, fresh->Generate(request));
      EXPECT_EQ(a.tokens, b.tokens);
      EXPECT_EQ(a.logprobs, b.logprobs);
      drawn.push_back(a.tokens);
    }
    EXPECT_NE(drawn[0], drawn[1]);
    // One of the engine, one of each fresh engine.
    EXPECT_EQ(HostGpuCalls().records, records + 4);
    EXPECT_EQ(HostGpuCalls().graphs, before.graphs + 1);
    ASSERT_OK(engine->Load(SineSnapshot(TinyConfig("llama"))));
    ASSERT_OK(engine->Generate(SomeRequest(TinyConfig("llama"), 4)));
    EXPECT_EQ(HostGpuCalls().records, records + 5);
    EXPECT_EQ(HostGpuCalls().graphs, before.graphs + 1);
  }
  EXPECT_EQ(HostGpuCalls().graphs, before.graphs);
}

TEST(DecodePoolTest, TheOldestOfTooManyBucketsIsDropped) {
  ModelConfig config = TinyConfig("llama");
  config.max_positions = 4096;
  auto engine = Engine(OnHostGpu());
  ASSERT_OK(engine->Load(RandomSnapshot(config, 1)));
  const HostGpuCounts before = HostGpuCalls();
  int buckets = 0;
  for (int64_t rows : {8, 4, 2, 1}) {
    for (int64_t length : {600, 300, 200, 100, 20}) {
      GenerateRequest request = SomeRequest(config, static_cast<size_t>(rows));
      request.prompts[0].assign(static_cast<size_t>(length), 3);
      request.sampling.eos_ids.clear();
      request.max_new_tokens = 3;
      ASSERT_OK(engine->Generate(request));
      ++buckets;
    }
  }
  EXPECT_EQ(HostGpuCalls().records, before.records + buckets);
  EXPECT_EQ(HostGpuCalls().graphs, before.graphs + 16);
}

TEST(StepGraphTest, AnErrorOfTheBodyComesOutAsItself) {
  StepGraph graph(HostGpu(), [] { throw std::runtime_error("from the body"); });
  EXPECT_THAT([&] { graph.Replay(); },
              ::testing::ThrowsMessage<std::runtime_error>("from the body"));
}

TEST(DecodePoolTest, WeightsThatAreNotFiniteAreAnErrorAndGoAgain) {
  const ModelConfig config = TinyConfig("llama");
  const auto good = SineSnapshot(config);
  std::vector<float> values(good->arena->floats().begin(),
                            good->arena->floats().end());
  std::fill(values.begin(), values.end(), std::nanf(""));
  ASSERT_OK_AND_ASSIGN(
      const auto bad,
      SnapshotFromFloats(ParameterLayout(config, "policy"), values));
  Pair pair;
  ASSERT_OK(pair.gpu->Load(bad));
  EXPECT_THAT(pair.gpu->Generate(SomeRequest(config, 4)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  // What it left in the caches is never read.
  pair.Load(good);
  pair.ExpectSame(SomeRequest(config, 4));
}

}  // namespace
}  // namespace cox
