// cox-rates PROBES OUT: how long the passes of a run's model take here.
//
// PROBES is a JSON object that `cox plan` writes: "config" (config.json of the
// model), "threads", "device" and the shapes "train_rows" x "train_length",
// "score_rows" x "score_length", "prompt_tokens", "new_tokens". OUT gets
// seconds of one pass each ("train_s", "score_s", "generate_s", "update_s") and
// the memory of a process that serves, private without the weights, and shared
// with others.

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "learner/optimizer.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/comm/collective.h"
#include "lib/model/api.h"
#include "lib/weights/snapshot.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

// Median of what repeats within a second take, the first one left out.
absl::StatusOr<double> Seconds(const std::function<absl::Status()>& pass) {
  COX_RETURN_IF_ERROR(pass());
  std::vector<double> times;
  const MonoTime begin = Clock::Real().Now();
  while (times.size() < 3 || (times.size() < 50 &&
                              Clock::Real().Now() - begin < absl::Seconds(1))) {
    const MonoTime start = Clock::Real().Now();
    COX_RETURN_IF_ERROR(pass());
    times.push_back(absl::ToDoubleSeconds(Clock::Real().Now() - start));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// `heads` of each row's places want a log-prob, the last ones.
TokenBatch MakeBatch(int64_t rows, int64_t length, int64_t heads,
                     int64_t vocab) {
  TokenBatch batch;
  batch.batch = rows;
  batch.length = length;
  for (int64_t i = 0; i < rows * length; ++i) {
    batch.ids.push_back(static_cast<int32_t>((i * 7919) % vocab));
    const int64_t place = i % length;
    batch.scored.push_back(place + 1 < length && place + 1 >= length - heads);
  }
  batch.lengths.assign(static_cast<size_t>(rows), static_cast<int32_t>(length));
  return batch;
}

double StatusBytes(const std::string& key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) == 0) {
      std::istringstream rest(line.substr(key.size()));
      double kb = 0;
      rest >> kb;
      return kb * 1024;
    }
  }
  return 0;
}

absl::StatusOr<Json> Measure(const Json& probes) {
  EngineOptions options;
  options.threads = probes.value("threads", 1);
  options.device = probes.value("device", "cpu");
  COX_RETURN_IF_ERROR(InitTorch(options).status());
  COX_ASSIGN_OR_RETURN(const ModelConfig config,
                       ModelConfig::FromJson(probes.value("config", "")));
  COX_ASSIGN_OR_RETURN(const auto policy, MakePolicyEngine(options));
  Json out;
  const Manifest layout = ParameterLayout(config, "policy");
  std::vector<float> weights(layout.arena_bytes / sizeof(float));
  InitializeParameters(config, 1, weights);
  COX_ASSIGN_OR_RETURN(const auto snapshot,
                       SnapshotFromFloats(layout, weights));
  COX_RETURN_IF_ERROR(policy->Load(snapshot));

  const int64_t rows = probes.value("score_rows", int64_t{8});
  const int64_t new_tokens = probes.value("new_tokens", int64_t{8});
  const int64_t prompt = probes.value("prompt_tokens", int64_t{8});
  const TokenBatch scored =
      MakeBatch(rows, probes.value("score_length", prompt + new_tokens),
                new_tokens, config.vocab_size);
  COX_ASSIGN_OR_RETURN(const double score_s, Seconds([&] {
                         return policy->Logprobs(scored, 1.0, false).status();
                       }));
  out["score_s"] = score_s;

  GenerateRequest request;
  for (int64_t row = 0; row < rows; ++row) {
    request.prompts.emplace_back(static_cast<size_t>(prompt), 5);
    request.prompt_ids.push_back(static_cast<uint64_t>(row));
    request.sample_indices.push_back(0);
  }
  request.seed = 1;
  request.max_new_tokens = new_tokens;
  COX_ASSIGN_OR_RETURN(const double generate_s, Seconds([&] {
                         return policy->Generate(request).status();
                       }));
  out["generate_s"] = generate_s;

  // Now the process is as large as one that serves: what the passes keep for
  // the next time is in it, the two copies of the weights are counted apart.
  const double weights_bytes =
      2 * static_cast<double>(layout.arena_bytes) +
      static_cast<double>(weights.size() * sizeof(float));
  out["private_bytes"] = std::max(0.0, StatusBytes("RssAnon:") - weights_bytes);
  out["shared_bytes"] = StatusBytes("RssFile:");

  COX_ASSIGN_OR_RETURN(const auto train, MakeTrainEngine(options));
  COX_RETURN_IF_ERROR(train->Load(snapshot));
  const int64_t length = probes.value("train_length", int64_t{32});
  const TokenBatch text = MakeBatch(probes.value("train_rows", int64_t{8}),
                                    length, length, config.vocab_size);
  COX_ASSIGN_OR_RETURN(
      const double train_s, Seconds([&] {
        return train->AccumulateLogprobs(
            text, 1.0, /*want_entropy=*/false,
            [](const LogprobOutput& output, LogprobGradient* gradient) {
              gradient->logprobs.assign(output.logprobs.size(), -1e-3f);
              return absl::OkStatus();
            });
      }));
  out["train_s"] = train_s;

  COX_ASSIGN_OR_RETURN(FlatOptimizer optimizer,
                       FlatOptimizer::Create(OptimizerOptions(), layout));
  const std::unique_ptr<Collective> alone = MakeSingleRank();
  // A step also hashes the weights it leaves.
  COX_ASSIGN_OR_RETURN(
      const double update_s, Seconds([&]() -> absl::Status {
        COX_RETURN_IF_ERROR(optimizer.Apply(0, *train, *alone).status());
        return SnapshotFromFloats(train->layout(), train->Parameters())
            .status();
      }));
  out["update_s"] = update_s;
  return out;
}

absl::Status Run(const std::string& input, const std::string& output) {
  COX_ASSIGN_OR_RETURN(const std::string text, Fs::Real().ReadAll(input));
  const Json probes = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!probes.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(input, ": expected a JSON object"));
  }
  COX_ASSIGN_OR_RETURN(const Json out, Measure(probes));
  return WriteFileDurably(Fs::Real(), output, out.dump());
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  cox::InitLog("rates");
  cox::InitProcess(/*die_with_parent=*/true);
  if (argc != 3) {
    std::fprintf(stderr, "usage: cox-rates PROBES.json OUT\n");
    return cox::kExitUsage;
  }
  if (const absl::Status status = cox::Run(argv[1], argv[2]); !status.ok()) {
    std::fprintf(stderr, "cox-rates: %s\n",
                 std::string(status.message()).c_str());
    return cox::ExitCodeFor(status);
  }
  return cox::kExitDone;
}
