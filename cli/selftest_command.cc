#include "cli/selftest_command.h"

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/selftest_task.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/base/status.h"
#include "lib/engine/model_config.h"
#include "lib/weights/model_folder.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

// How far below the optimum an algorithm may end, in reward.
constexpr double kTolerance = 0.03;
// The logged objective is averaged over so many last steps.
constexpr size_t kLoggedSteps = 10;
constexpr absl::Duration kRunLimit = absl::Minutes(5);

// What differs between the algorithms in `ppo:`. The KL is k1 in the reward,
// before any group statistics, so that all four share one optimum.
struct Algorithm {
  const char* name;
  const char* settings;
};
constexpr Algorithm kAlgorithms[] = {
    {"ppo", "estimator: gae, lambda: 1.0, prompts_per_step: 256"},
    {"rloo", "estimator: rloo, prompts_per_step: 32, samples_per_prompt: 8"},
    {"grpo", "estimator: grpo, prompts_per_step: 32, samples_per_prompt: 8"},
    {"reinforce_pp", "estimator: reinforce_pp, prompts_per_step: 256"},
};

struct Trial {
  const Algorithm* algorithm = nullptr;
  const EnumerableTask* task = nullptr;
  std::string dir;
  pid_t pid = 0;
  MonoTime started;
  double seconds = 0;
  absl::Status status;
  Objective start;
  Objective end;
  double logged = 0;        // mean of objective/score_total, last steps
  double logged_error = 0;  // its standard error
  bool passed = false;
};

struct Training {
  int steps;
  double lr;
};
Training TrainingOf(const EnumerableTask& task) {
  return task.max_new_tokens == 1 ? Training{60, 1e-2} : Training{250, 4e-3};
}

std::string RunYaml(const Trial& trial) {
  const EnumerableTask& task = *trial.task;
  const Training training = TrainingOf(task);
  const bool groups =
      std::string(trial.algorithm->settings).find("samples_per_prompt") !=
      std::string::npos;
  return absl::StrFormat(
      "name: selftest-%s-%s\n"
      "seed: 7\n"
      "stages: [ppo]\n"
      "model: {init: init}\n"
      "tokenizer: {kind: none, vocab_size: %d, eos_ids: [0], pad_id: %d}\n"
      "roles: {actors: 2, rewards: 1, learners: 1}\n"
      "numerics: {shards: 1}\n"
      "generation: {max_prompt_tokens: 1, max_new_tokens: %d}\n"
      "reward: {kind: table, path: table.json, monitor_gold: false}\n"
      "checkpoint: {every: 100000}\n"
      "log: {tensorboard: false, samples_per_step: 0}\n"
      "ppo: {prompts: [prompts.jsonl], steps: %d, unit_prompts: %d, %s, "
      "kl_coef: %g, kl_estimator: k1, missing_eos: none, epochs: 2, "
      "minibatches: 2, optimizer: {lr: %g, schedule: linear}, "
      "value_optimizer: {lr: %g}}\n",
      trial.algorithm->name, task.name, task.vocab, task.vocab - 1,
      task.max_new_tokens, training.steps, groups ? 16 : 128,
      trial.algorithm->settings, task.beta, training.lr, training.lr);
}

// A reference that prefers some answers, the same on every machine: the
// pinned fill of docs/algorithms.md §12.
absl::Status WriteInitialModel(const EnumerableTask& task,
                               const std::string& dir) {
  ModelConfig config;
  config.family = ModelFamily::kGpt2;
  config.vocab_size = task.vocab;
  config.hidden = 16;
  config.layers = 1;
  config.heads = 2;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.intermediate = 64;
  config.max_positions = 8;
  COX_RETURN_IF_ERROR(config.Validate());
  const Manifest layout = ParameterLayout(config, "policy");
  std::vector<float> parameters(layout.arena_bytes / sizeof(float));
  SineFill(config, 1.3, 0.7, parameters);
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> snapshot,
                       SnapshotFromFloats(layout, parameters));
  return SaveModelFolder(Fs::Real(), dir, *snapshot, {}).status();
}

absl::Status Prepare(const Trial& trial) {
  Fs& fs = Fs::Real();
  COX_RETURN_IF_ERROR(fs.MakeDirs(trial.dir));
  const auto write = [&](const char* name, const std::string& text) {
    return WriteFileDurably(fs, JoinPath(trial.dir, name), text);
  };
  COX_RETURN_IF_ERROR(write("run.yaml", RunYaml(trial)));
  COX_RETURN_IF_ERROR(write("table.json", TableJson(*trial.task)));
  COX_RETURN_IF_ERROR(write("prompts.jsonl", PromptsJsonl(*trial.task)));
  COX_RETURN_IF_ERROR(write("sequences.jsonl", SequencesJsonl(*trial.task)));
  return WriteInitialModel(*trial.task, JoinPath(trial.dir, "init"));
}

absl::Status StartRun(Trial& trial) {
  COX_RETURN_IF_ERROR(Prepare(trial));
  ChildOptions child;
  child.argv = {
      JoinPath(ExecutableDir(), "cox"), "run", JoinPath(trial.dir, "run.yaml"),
      absl::StrCat("run_dir=", JoinPath(trial.dir, "run")), "--quiet"};
  child.log_path = JoinPath(trial.dir, "run.log");
  COX_ASSIGN_OR_RETURN(trial.pid, SpawnChild(child));
  trial.started = Clock::Real().Now();
  return absl::OkStatus();
}

// Log-probs of every answer under a model folder, by cox-logprob (which has
// the networks; `cox` itself does not link them).
absl::StatusOr<ResponseLogprobs> Enumerate(const Trial& trial,
                                           const std::string& model,
                                           const char* name) {
  const std::string out = JoinPath(trial.dir, absl::StrCat(name, ".jsonl"));
  ChildOptions child;
  child.argv = {JoinPath(ExecutableDir(), "cox-logprob"), model,
                JoinPath(trial.dir, "sequences.jsonl"), out};
  child.log_path = JoinPath(trial.dir, "logprob.log");
  COX_ASSIGN_OR_RETURN(const pid_t pid, SpawnChild(child));
  const ChildExit exit = WaitChild(pid, absl::Minutes(1));
  if (!exit.exited) SignalChild(pid, SIGKILL);
  if (!exit.exited || exit.signal != 0 || exit.code != 0) {
    return absl::InternalError(absl::StrCat("cox-logprob failed on ", model,
                                            " (log: ", child.log_path, ")"));
  }
  COX_ASSIGN_OR_RETURN(const std::string text, Fs::Real().ReadAll(out));
  ResponseLogprobs logprobs(trial.task->prompts.size(),
                            std::vector<double>(trial.task->responses.size()));
  const char* at = text.c_str();
  for (std::vector<double>& row : logprobs) {
    for (double& value : row) {
      char* end = nullptr;
      value = strtod(at, &end);
      if (end == at) {
        return absl::InternalError(absl::StrCat(out, ": too few lines"));
      }
      at = end;
    }
  }
  return logprobs;
}

absl::StatusOr<std::string> ExportedPolicy(const Trial& trial) {
  const std::string root = JoinPath(trial.dir, "run/checkpoints/ppo");
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                       Fs::Real().List(root));
  const auto last = std::max_element(names.begin(), names.end());
  if (last == names.end()) {
    return absl::InternalError(absl::StrCat(root, ": no checkpoint"));
  }
  return JoinPath(JoinPath(root, *last), "policy");
}

// Mean and standard error of the objective that the run itself logged.
absl::Status ReadLogged(Trial& trial) {
  COX_ASSIGN_OR_RETURN(
      const std::string text,
      Fs::Real().ReadAll(JoinPath(trial.dir, "run/metrics.jsonl")));
  std::vector<double> values;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const Json line = Json::parse(text.begin() + static_cast<long>(begin),
                                  text.begin() + static_cast<long>(end),
                                  nullptr, /*allow_exceptions=*/false);
    if (line.is_object() && line.contains("objective/score_total") &&
        line["objective/score_total"].is_number()) {
      values.push_back(line["objective/score_total"].get<double>());
    }
    begin = end + 1;
  }
  if (values.size() < kLoggedSteps) {
    return absl::InternalError(
        "metrics.jsonl: too few values of objective/score_total");
  }
  values.erase(values.begin(), values.end() - kLoggedSteps);
  double sum = 0;
  for (const double value : values) sum += value;
  trial.logged = sum / kLoggedSteps;
  double squares = 0;
  for (const double value : values) {
    squares += (value - trial.logged) * (value - trial.logged);
  }
  trial.logged_error = std::sqrt(squares / (kLoggedSteps - 1) / kLoggedSteps);
  return absl::OkStatus();
}

absl::Status Judge(Trial& trial) {
  COX_ASSIGN_OR_RETURN(
      const ResponseLogprobs reference,
      Enumerate(trial, JoinPath(trial.dir, "init"), "reference"));
  COX_ASSIGN_OR_RETURN(const std::string exported, ExportedPolicy(trial));
  COX_ASSIGN_OR_RETURN(const ResponseLogprobs policy,
                       Enumerate(trial, exported, "policy"));
  COX_RETURN_IF_ERROR(ReadLogged(trial));
  trial.start = Evaluate(*trial.task, reference, reference);
  trial.end = Evaluate(*trial.task, policy, reference);
  // J is exact, so only rounding may lift it above J*; what the run logged
  // is an average of samples.
  trial.passed =
      std::abs(trial.end.mass - 1) < 1e-5 &&
      trial.end.value >= trial.end.optimum - kTolerance &&
      trial.end.value <= trial.end.optimum + 1e-6 &&
      trial.logged <= trial.end.optimum + 3 * trial.logged_error + 1e-6;
  return absl::OkStatus();
}

// Whether the run has ended, well or not.
bool Finished(Trial& trial) {
  const ChildExit exit = PollChild(trial.pid);
  const absl::Duration age = Clock::Real().Now() - trial.started;
  if (!exit.exited && age < kRunLimit) return false;
  trial.seconds = absl::ToDoubleSeconds(age);
  if (!exit.exited) {
    SignalChild(trial.pid, SIGTERM);
    (void)WaitChild(trial.pid, absl::Seconds(40));
    trial.status = absl::DeadlineExceededError("the run takes too long");
  } else if (exit.signal != 0 || exit.code != 0) {
    trial.status = absl::InternalError(absl::StrCat(
        "cox run ended with ", exit.signal != 0 ? exit.signal : exit.code,
        " (log: ", JoinPath(trial.dir, "run.log"), ")"));
  } else {
    trial.status = Judge(trial);
  }
  trial.pid = 0;
  return true;
}

void PrintTrial(const Trial& trial) {
  if (!trial.status.ok()) {
    std::printf("%-13s %-9s FAILED: %s\n", trial.algorithm->name,
                trial.task->name.c_str(),
                std::string(trial.status.message()).c_str());
    return;
  }
  std::printf("%-13s %-9s %8.4f %8.4f %8.4f %8.4f %9.4f %7.3f %6.1f  %s\n",
              trial.algorithm->name, trial.task->name.c_str(),
              trial.start.value, trial.end.value, trial.end.optimum,
              trial.end.optimum - trial.end.value, trial.logged, trial.end.kl,
              trial.seconds, trial.passed ? "ok" : "FAILED");
}

// Runs all trials, at most `jobs` at a time. False when interrupted.
bool RunAll(std::vector<Trial>& trials, size_t jobs) {
  size_t next = 0;
  std::vector<Trial*> running;
  while (next < trials.size() || !running.empty()) {
    if (ShutdownRequested()) {
      for (Trial* trial : running) SignalChild(trial->pid, SIGTERM);
      for (Trial* trial : running) {
        (void)WaitChild(trial->pid, absl::Seconds(40));
      }
      return false;
    }
    while (next < trials.size() && running.size() < jobs) {
      Trial& trial = trials[next++];
      trial.status = StartRun(trial);
      if (trial.status.ok()) {
        running.push_back(&trial);
      } else {
        PrintTrial(trial);
      }
    }
    for (size_t i = 0; i < running.size();) {
      if (!Finished(*running[i])) {
        ++i;
        continue;
      }
      PrintTrial(*running[i]);
      std::fflush(stdout);
      running.erase(running.begin() + static_cast<long>(i));
    }
    SleepUnlessShutdown(absl::Milliseconds(50));
  }
  return true;
}

std::vector<Trial> MakeTrials(const SelfTestOptions& options,
                              const std::vector<EnumerableTask>& tasks,
                              const std::string& root) {
  std::vector<Trial> trials;
  for (const EnumerableTask& task : tasks) {
    for (const Algorithm& algorithm : kAlgorithms) {
      if (!options.algorithms.empty() &&
          std::find(options.algorithms.begin(), options.algorithms.end(),
                    algorithm.name) == options.algorithms.end()) {
        continue;
      }
      Trial& trial = trials.emplace_back();
      trial.algorithm = &algorithm;
      trial.task = &task;
      trial.dir = JoinPath(root, absl::StrCat(task.name, "-", algorithm.name));
    }
  }
  return trials;
}

}  // namespace

int SelfTest(const SelfTestOptions& options) {
  for (const char* part : {"cox-logprob", "cox-learner"}) {
    if (!Fs::Real().Exists(JoinPath(ExecutableDir(), part))) {
      std::fprintf(stderr,
                   "selftest: no %s beside cox; it is built only with "
                   "LibTorch\n",
                   part);
      return kExitUsage;
    }
  }
  std::string root =
      (std::filesystem::temp_directory_path() / "cox-selftest-XXXXXX").string();
  if (mkdtemp(root.data()) == nullptr) {
    std::fprintf(stderr, "selftest: cannot create %s\n", root.c_str());
    return kExitUsage;
  }
  std::vector<EnumerableTask> tasks = {ThreeArmedBandit()};
  if (!options.quick) tasks.push_back(TinyLanguage());
  std::vector<Trial> trials = MakeTrials(options, tasks, root);
  const MonoTime begin = Clock::Real().Now();
  std::printf(
      "J = E[r] - beta KL(policy || reference), exact, of the exported "
      "policy; J* is the optimum.\n"
      "%-13s %-9s %8s %8s %8s %8s %9s %7s %6s\n",
      "algorithm", "task", "J before", "J", "J*", "J* - J", "J logged", "KL",
      "s");
  if (!RunAll(trials, static_cast<size_t>(options.jobs))) {
    return kExitRetryable;
  }
  const int64_t passed = std::count_if(trials.begin(), trials.end(),
                                       [](const Trial& t) { return t.passed; });
  const bool good = passed == static_cast<int64_t>(trials.size());
  std::printf("%d of %d within %.2f of the optimum, %.0f s\n",
              static_cast<int>(passed), static_cast<int>(trials.size()),
              kTolerance, absl::ToDoubleSeconds(Clock::Real().Now() - begin));
  if (options.keep || !good) {
    std::printf("run directories: %s\n", root.c_str());
  } else {
    (void)Fs::Real().RemoveAll(root);
  }
  return good ? kExitDone : kExitCheckFailed;
}

}  // namespace cox
