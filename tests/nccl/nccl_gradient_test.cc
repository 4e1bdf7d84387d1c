// Gradients of real networks, summed by NCCL (its fake) bucket by bucket while
// the backward pass goes on, have the bits of those summed afterwards, on any
// number of ranks. The engine computes as on a GPU, its memory is the host's.

#include <cmath>
#include <numeric>

#include "gtest/gtest.h"
#include "learner/batching.h"
#include "learner/optimizer.h"
#include "learner/shards.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/model/api.h"
#include "tests/gpu/host_gpu.h"
#include "tests/nccl/nccl_world.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

constexpr int64_t kRows = 12;

struct Setting {
  const char* dtype = "fp32";
  bool recompute = false;
  bool tied = false;
};

ModelConfig ConfigOf(const Setting& setting) {
  ModelConfig config;
  config.family = ModelFamily::kLlama;
  config.vocab_size = 40;
  config.hidden = 16;
  config.layers = 3;
  config.heads = config.kv_heads = 2;
  config.head_dim = 8;
  config.intermediate = 32;
  config.max_positions = 32;
  config.tied_embeddings = setting.tied;
  return config;
}

absl::StatusOr<std::unique_ptr<TrainEngine>> MakeEngine(
    const Setting& setting) {
  EngineOptions options;
  options.portable = true;
  options.kernels = HostGpu();
  options.dtype = setting.dtype;
  options.recompute = setting.recompute;
  COX_RETURN_IF_ERROR(InitTorch(options).status());
  COX_ASSIGN_OR_RETURN(auto engine, MakeTrainEngine(options));
  const ModelConfig config = ConfigOf(setting);
  const Manifest layout = ParameterLayout(config, "policy");
  std::vector<float> parameters(layout.arena_bytes / sizeof(float));
  InitializeParameters(config, 3, parameters);
  COX_ASSIGN_OR_RETURN(auto snapshot, SnapshotFromFloats(layout, parameters));
  COX_RETURN_IF_ERROR(engine->Load(std::move(snapshot)));
  return engine;
}

TokenBatch BatchOf(std::span<const int64_t> rows) {
  std::vector<Sequence> sequences;
  for (const int64_t row : rows) {
    Sequence& sequence = sequences.emplace_back();
    for (int64_t j = 0; j < 4 + row % 3; ++j) {
      sequence.ids.push_back(static_cast<int32_t>((7 * row + 3 * j) % 40));
    }
  }
  std::vector<const Sequence*> picked;
  for (const Sequence& sequence : sequences) picked.push_back(&sequence);
  return MakeTokenBatch(picked);
}

absl::Status Loss(const LogprobOutput& out, LogprobGradient* gradient) {
  gradient->logprobs.resize(out.logprobs.size());
  for (size_t i = 0; i < out.logprobs.size(); ++i) {
    gradient->logprobs[i] =
        out.logprobs[i] == 0 ? 0 : static_cast<float>(std::cos(double(i)));
  }
  return absl::OkStatus();
}

// Two steps of 4 shards; hash of gradients, parameters and norm.
absl::StatusOr<std::string> Train(const Setting& setting, Collective& group,
                                  bool overlap) {
  COX_ASSIGN_OR_RETURN(const auto engine, MakeEngine(setting));
  GradientSum::Options sum;
  if (overlap) sum.bucket_floats = 500;
  COX_ASSIGN_OR_RETURN(Shards shards, Shards::Create(4, group, sum));
  COX_ASSIGN_OR_RETURN(
      FlatOptimizer optimizer,
      FlatOptimizer::Create(OptimizerOptions(), engine->layout()));
  Sha256 hash;
  for (int64_t step = 0; step < 2; ++step) {
    COX_RETURN_IF_ERROR(
        shards.Backward(*engine, [&](int64_t shard, size_t) -> absl::Status {
          const auto pass = [&](std::span<const int64_t> rows) {
            return engine->AccumulateLogprobs(BatchOf(rows), 1.0, false, Loss);
          };
          const std::vector<int64_t> rows = shards.Elements(kRows, shard);
          return overlap ? BackwardMicroBatches(*engine, rows, 2, pass)
                         : ForMicroBatches(rows, 2, pass);
        }));
    hash.Update(std::as_bytes(engine->Gradients()));
    COX_ASSIGN_OR_RETURN(const auto update, optimizer.Apply(step, *engine));
    hash.Update(std::as_bytes(std::span(&update.grad_norm, 1)));
    hash.Update(std::as_bytes(engine->Parameters()));
  }
  return hash.HexDigest();
}

// LibTorch allocates the host's memory, which stands for a GPU's.
NcclWorld::Settings WorldSettings() {
  NcclWorld::Settings settings;
  settings.env["COX_FAKE_CUDA_ANY_MEMORY"] = "1";
  settings.env["COX_FAKE_CUDA_DELAY_US"] = "200";
  return settings;
}

TEST(NcclGradientTest, OverlappedSumsHaveTheBitsOfLaterOnes) {
  for (const Setting& setting :
       {Setting{}, Setting{.dtype = "bf16", .recompute = true, .tied = true}}) {
    SCOPED_TRACE(setting.dtype);
    std::string expected;
    // The first run sums at the end, in one piece.
    for (const auto& [size, overlap] : std::vector<std::pair<int, bool>>{
             {1, false}, {1, true}, {2, true}, {4, true}}) {
      NcclWorld world(size);
      world.StartAll(WorldSettings(), [&](NcclCollective& comm) {
        const auto hash = Train(setting, comm, overlap);
        CHILD_CHECK_OK(hash.status());
        CHILD_CHECK_OK(WriteFileDurably(
            Fs::Real(), JoinPath(world.dir(), std::to_string(comm.rank())),
            *hash));
        return 0;
      });
      world.ExpectAllExit(0);
      EXPECT_EQ(world.Misuses(), "");
      for (int rank = 0; rank < size; ++rank) {
        ASSERT_OK_AND_ASSIGN(
            const std::string hash,
            Fs::Real().ReadAll(JoinPath(world.dir(), std::to_string(rank))));
        if (expected.empty()) expected = hash;
        EXPECT_EQ(hash, expected) << "rank " << rank << " of " << size;
      }
    }
  }
}

TEST(NcclGradientTest, AFaultDuringABackwardPassEndsAllRanks) {
  for (const char* fault : {"hang", "async"}) {
    SCOPED_TRACE(fault);
    constexpr int kEnded = 7;
    NcclWorld world(2);
    NcclWorld::Settings settings = WorldSettings();
    settings.timeout = absl::Seconds(2);
    settings.env["COX_FAKE_NCCL"] = std::string("rank=1 call=4 fault=") + fault;
    world.StartAll(settings, [&](NcclCollective& comm) {
      const absl::Status status = Train({}, comm, true).status();
      const bool ended =
          absl::IsAborted(status) || absl::IsDeadlineExceeded(status);
      if (!ended) std::fprintf(stderr, "%s\n", status.ToString().c_str());
      return ended ? kEnded : 1;
    });
    world.ExpectAllExit(kEnded);
  }
}

}  // namespace
}  // namespace cox
