#include "cli/bench_rollout.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <memory>
#include <utility>

#include "cli/simulated_actors_client.h"
#include "cli/usage_sample.h"
#include "coordinator/ledger_audit.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/base/process.h"
#include "lib/base/rng.h"
#include "lib/base/thread.h"
#include "lib/rpc/coordinator_client.h"
#include "lib/rpc/error_reason.h"
#include "lib/rpc/heartbeater.h"
#include "lib/weights/manifest.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

constexpr int64_t kVocab = 1000;
constexpr int64_t kPromptTokens = 16;
constexpr int64_t kPrompts = 1024;
constexpr int64_t kVersionsAhead = 16;

// What one sample of SerializeUnit takes beside its answer's tokens (12 bytes
// each: id and two log-probs).
constexpr int64_t kSampleBytes = 67 + 64 + 4 * kPromptTokens + 17;

int64_t ResponseTokens(const RolloutBenchOptions& options) {
  if (options.payload == 0) return 24;
  const int64_t per_sample = options.payload / options.samples_per_message;
  return std::max<int64_t>(1, (per_sample - kSampleBytes) / 12);
}

// A run whose units hold `samples_per_message` samples and whose open units
// are enough for twice the actors.
std::string RunYaml(const RolloutBenchOptions& options) {
  const int units = std::max(1, options.actors / 8);
  return absl::StrCat(
      "name: bench\nstages: [ppo]\n"
      "tokenizer: {kind: none, vocab_size: ",
      kVocab,
      ", eos_ids: [1], pad_id: 0}\n"
      "roles: {actors: ",
      options.actors,
      ", learners: 1}\n"
      "schedule: {mode: ",
      options.mode, ", lag: ", kVersionsAhead, ", eta: ", kVersionsAhead,
      "}\n"
      "generation: {max_prompt_tokens: ",
      kPromptTokens, ", max_new_tokens: ", ResponseTokens(options),
      "}\n"
      "model: {max_positions: ",
      kPromptTokens + ResponseTokens(options),
      "}\n"
      // Scores are made up with the samples; nobody asks this address.
      "reward: {kind: grpc, address: '127.0.0.1:1'}\n"
      "ppo: {prompts: [prompts.jsonl], steps: 1000000, prompts_per_step: ",
      units * options.samples_per_message,
      ", unit_prompts: ", options.samples_per_message,
      "}\n"
      "checkpoint: {every: 1000000}\n"
      "seed: ",
      options.seed, "\n");
}

std::string PromptLines(uint64_t seed) {
  std::string text;
  CounterRng rng(seed, "prompts");
  for (int64_t row = 0; row < kPrompts; ++row) {
    nlohmann::json ids = nlohmann::json::array();
    for (int64_t i = 0; i < kPromptTokens; ++i) {
      ids.push_back(rng.NextBelow(kVocab));
    }
    absl::StrAppend(&text, nlohmann::json{{"prompt_ids", ids}}.dump(), "\n");
  }
  return text;
}

// A version's manifest, as large as that of a model of four layers.
Manifest VersionManifest(int64_t step) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors;
  for (int layer = 0; layer < 4; ++layer) {
    for (int i = 0; i < 12; ++i) {
      tensors.emplace_back(absl::StrCat("transformer.h.", layer, ".part", i),
                           std::vector<int64_t>{16, 16});
    }
  }
  Manifest manifest = LayOut("policy", "{}", DType::kF32, tensors);
  for (TensorInfo& tensor : manifest.tensors) {
    tensor.sha256 =
        Sha256Hex(std::string_view(absl::StrCat(tensor.name, "@", step)));
  }
  return manifest;
}

// A learner whose training takes no time, and the reward replica without which
// nothing is leased.
class FakeLearner {
 public:
  FakeLearner(const std::string& address, const std::string& run_id)
      : learner_({.address = address,
                  .run_id = run_id,
                  .role = "learner",
                  .name = "learner-0",
                  .session = "",
                  .own_address = "127.0.0.1:1",
                  .numerics_class = ""}),
        reward_({.address = address,
                 .run_id = run_id,
                 .role = "reward",
                 .name = "reward-0",
                 .session = "",
                 .own_address = "127.0.0.1:1",
                 .numerics_class = ""}) {}
  ~FakeLearner() { Stop(); }

  absl::Status Start() {
    COX_RETURN_IF_ERROR(learner_.Register().status());
    COX_ASSIGN_OR_RETURN(
        const auto joined,
        learner_.JoinGroup(0, 1, "127.0.0.1:1", absl::Seconds(10)));
    if (!joined.ready()) {
      return absl::UnavailableError("the learner group is not ready");
    }
    COX_RETURN_IF_ERROR(Publish("reference", 0));
    COX_RETURN_IF_ERROR(Publish("policy", 0));
    COX_RETURN_IF_ERROR(reward_.Register().status());
    beats_ = std::make_unique<Heartbeater>(&reward_, absl::Seconds(1));
    beats_->SetHeld({VersionManifest(0).ContentHash()});
    COX_RETURN_IF_ERROR(
        reward_.ReportHeld({VersionManifest(0).ContentHash()}, "127.0.0.1:1"));
    thread_ = Thread("learner", [this] { Train(); });
    return absl::OkStatus();
  }

  void Stop() {
    stopping_ = true;
    learner_.StopWaiting();
    reward_.StopWaiting();
    thread_.Join();
    beats_.reset();
  }
  int64_t steps() const { return steps_; }
  // REQUIRES: stopped.
  const absl::Status& status() const { return status_; }

 private:
  absl::Status Publish(const std::string& model, int64_t step) {
    const Manifest manifest = VersionManifest(step);
    VersionSource source;
    source.model = model;
    source.version = {0, step};
    source.content_hash = manifest.ContentHash();
    source.manifest = manifest.CanonicalText();
    return learner_.PublishVersion(source, "127.0.0.1:1");
  }

  absl::Status Step(int64_t step) {
    COX_ASSIGN_OR_RETURN(const TakenBatch batch,
                         learner_.TakeBatch(0, step, 0, absl::Seconds(10)));
    cox::v1::CommitStepRequest commit;
    commit.set_stage(0);
    commit.set_step(step);
    commit.set_batch_sha256(batch.batch_sha256);
    commit.set_weight_hash(VersionManifest(step).ContentHash());
    COX_RETURN_IF_ERROR(learner_.CommitStep(commit).status());
    return Publish("policy", step);
  }

  void Train() {
    for (int64_t step = 1; !stopping_;) {
      const absl::Status status = Step(step);
      if (status.ok()) {
        steps_ = step++;
      } else if (ReasonOf(status) != ErrorReason::kNotReady) {
        if (!stopping_) status_ = status;
        return;
      }
    }
  }

  CoordinatorClient learner_;
  CoordinatorClient reward_;
  std::unique_ptr<Heartbeater> beats_;
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> steps_{0};
  absl::Status status_;
  Thread thread_;
};

// The coordinator's process and its run directory.
class CoordinatorProcess {
 public:
  CoordinatorProcess(std::string dir, bool keep)
      : dir_(std::move(dir)), keep_(keep) {}
  ~CoordinatorProcess() {
    if (pid_ > 0) {
      SignalChild(pid_, SIGKILL);
      WaitChild(pid_, absl::Seconds(10));
    }
    if (!keep_) static_cast<void>(Fs::Real().RemoveAll(dir_));
  }
  CoordinatorProcess(const CoordinatorProcess&) = delete;
  CoordinatorProcess& operator=(const CoordinatorProcess&) = delete;

  absl::Status Start(const RolloutBenchOptions& options) {
    Fs& fs = Fs::Real();
    COX_RETURN_IF_ERROR(fs.RemoveAll(dir_));
    COX_RETURN_IF_ERROR(fs.MakeDirs(dir_));
    COX_RETURN_IF_ERROR(WriteFileDurably(fs, JoinPath(dir_, "prompts.jsonl"),
                                         PromptLines(options.seed)));
    COX_RETURN_IF_ERROR(
        WriteFileDurably(fs, JoinPath(dir_, "run.yaml"), RunYaml(options)));
    ChildOptions child;
    child.argv = {JoinPath(ExecutableDir(), "cox-coordinator"),
                  "--config",
                  JoinPath(dir_, "run.yaml"),
                  "--run-dir",
                  run_dir(),
                  "--port",
                  "0",
                  "--die-with-parent"};
    child.log_path = JoinPath(dir_, "coordinator.log");
    COX_ASSIGN_OR_RETURN(pid_, SpawnChild(child));
    for (int i = 0; i < 600; ++i) {
      const auto text = fs.ReadAll(JoinPath(run_dir(), "endpoints.json"));
      const auto json = nlohmann::json::parse(text.value_or(""), nullptr,
                                              /*allow_exceptions=*/false);
      if (json.is_object() && json.value("state", "") == "serving") {
        address_ = json.value("coordinator", "");
        run_id_ = json.value("run_id", "");
        return absl::OkStatus();
      }
      if (PollChild(pid_).exited ||
          SleepUnlessShutdown(absl::Milliseconds(50))) {
        break;
      }
    }
    return absl::UnavailableError(
        absl::StrCat("the coordinator does not serve:\n",
                     fs.ReadAll(child.log_path).value_or("")));
  }

  absl::Status Stop() {
    SignalChild(pid_, SIGTERM);
    const ChildExit exit = WaitChild(pid_, absl::Seconds(60));
    if (!exit.exited || exit.signal != 0 || exit.code != kExitDone) {
      return absl::InternalError(
          absl::StrCat("the coordinator ended with exit code ", exit.code,
                       ", signal ", exit.signal));
    }
    pid_ = 0;
    return absl::OkStatus();
  }

  pid_t pid() const { return pid_; }
  const std::string& address() const { return address_; }
  const std::string& run_id() const { return run_id_; }
  std::string run_dir() const { return JoinPath(dir_, "run"); }

 private:
  const std::string dir_;
  const bool keep_;
  pid_t pid_ = 0;
  std::string address_;
  std::string run_id_;
};

absl::Status CheckLedger(const std::string& run_dir,
                         const std::map<UnitId, std::string>& acknowledged,
                         RolloutBenchResult& result) {
  COX_ASSIGN_OR_RETURN(const RecordedRun run,
                       RecordedRun::Open(Fs::Real(), run_dir));
  result.acknowledged = static_cast<int64_t>(acknowledged.size());
  for (const auto& [unit, sha256] : acknowledged) {
    const UnitRow* row = run.FindUnit(unit);
    result.lost_units += row == nullptr || row->sha256 != sha256 ? 1 : 0;
  }
  const AuditReport report = AuditLedger(run, {});
  result.ledger_ok = report.ok();
  for (const AuditFinding& finding : report.findings) {
    if (finding.violations > 0 && result.ledger_error.empty()) {
      result.ledger_error = absl::StrCat(finding.name, ": ", finding.first);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RolloutBenchResult> RunRolloutBench(
    const RolloutBenchOptions& options) {
  RolloutBenchResult result;
  CoordinatorProcess coordinator(
      JoinPath(options.dir, absl::StrCat("cox-bench-rpc-", getpid())),
      options.keep);
  COX_RETURN_IF_ERROR(coordinator.Start(options));
  FakeLearner learner(coordinator.address(), coordinator.run_id());
  COX_RETURN_IF_ERROR(learner.Start());
  const int64_t rss_before = UsageOf(coordinator.pid()).rss_bytes;
  SimulatedActorOptions simulated;
  simulated.address = coordinator.address();
  simulated.run_id = coordinator.run_id();
  simulated.count = options.actors;
  simulated.service_time = absl::Seconds(options.service_time_s);
  simulated.response_tokens = ResponseTokens(options);
  simulated.vocab_size = kVocab;
  simulated.seed = options.seed;
  SimulatedActors actors(simulated);
  COX_RETURN_IF_ERROR(actors.Register(absl::Seconds(120)));
  actors.Start();
  // Until every actor has handed in its first unit.
  SleepUnlessShutdown(absl::Seconds(2 * options.service_time_s + 1));
  const ProcessUsage before = UsageOf(coordinator.pid());
  const ProcessUsage own_before = UsageOf(getpid());
  const MonoTime start = Clock::Real().Now();
  actors.BeginWindow();
  SleepUnlessShutdown(absl::Seconds(options.seconds));
  actors.EndWindow();
  result.window_s = absl::ToDoubleSeconds(Clock::Real().Now() - start);
  const ProcessUsage after = UsageOf(coordinator.pid());
  result.own_cpu_s = UsageOf(getpid()).cpu_s - own_before.cpu_s;
  result.coordinator_cpu_s = after.cpu_s - before.cpu_s;
  result.coordinator_rss_bytes = after.rss_bytes;
  result.coordinator_rss_bytes_per_actor =
      static_cast<double>(before.rss_bytes - rss_before) / options.actors;
  actors.Stop();
  learner.Stop();
  result.steps = learner.steps();
  SimulatedActors::Result measured = actors.TakeResult();
  result.samples_s = measured.samples_s;
  result.window_samples = measured.samples;
  result.ack_us = std::move(measured.ack_us);
  result.lease_us = std::move(measured.lease_us);
  result.failed_calls = measured.failed_calls;
  result.first_error = measured.first_error;
  COX_RETURN_IF_ERROR(learner.status());
  COX_RETURN_IF_ERROR(coordinator.Stop());
  COX_RETURN_IF_ERROR(
      CheckLedger(coordinator.run_dir(), actors.Acknowledged(), result));
  return result;
}

}  // namespace cox
