// Starts cox-rates in every role and reads what it found.

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/rehearsal_service.h"
#include "learner/train_loop_service.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/config/config.h"

namespace cox {
namespace {

namespace v1 = cox::v1;
using Json = nlohmann::json;

constexpr absl::Duration kPatience = absl::Minutes(20);

// CANCELLED when this process is told to stop. With `end` the child is.
absl::Status WaitFor(pid_t pid, const std::string& role, bool end) {
  if (end) SignalChild(pid, SIGKILL);
  const MonoTime deadline = Clock::Real().Now() + kPatience;
  ChildExit exit;
  while (!exit.exited && !ShutdownRequested() &&
         Clock::Real().Now() < deadline) {
    exit = WaitChild(pid, absl::Milliseconds(100));
  }
  if (!exit.exited) {
    SignalChild(pid, SIGKILL);
    static_cast<void>(WaitChild(pid, absl::Seconds(10)));
  }
  if (ShutdownRequested()) return absl::CancelledError("stopped");
  if (exit.exited && exit.code == 0 && exit.signal == 0) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("cox-rates failed as ", role,
                   "; give rates in --cluster to go without it"));
}

// `count` processes of one role at once; their answers by number.
absl::StatusOr<std::vector<Json>> RunRole(const std::string& dir,
                                          const std::string& role, int count) {
  int port = 0;
  if (count > 1 && role == "learner") {
    FreePort reserved;
    COX_ASSIGN_OR_RETURN(port, reserved.Reserve("127.0.0.1"));
  }
  std::vector<pid_t> children;
  std::vector<std::string> outs;
  absl::Status status;
  for (int i = 0; i < count; ++i) {
    outs.push_back(JoinPath(dir, absl::StrCat("rates-", role, "-", i)));
    ChildOptions child;
    child.argv = {JoinPath(ExecutableDir(), "cox-rates"),
                  dir,
                  role,
                  absl::StrCat(i),
                  absl::StrCat(count),
                  absl::StrCat(port),
                  outs.back()};
    child.log_path = outs.back() + ".log";
    const absl::StatusOr<pid_t> pid = SpawnChild(child);
    if (!pid.ok()) {
      status = Annotate(pid.status(),
                        "rates are measured by cox-rates, which needs "
                        "LibTorch; give them in --cluster");
      break;
    }
    children.push_back(*pid);
  }
  for (const pid_t pid : children) {
    const absl::Status ended = WaitFor(pid, role, /*end=*/!status.ok());
    if (status.ok()) status = ended;
  }
  std::vector<Json> answers;
  for (const std::string& out : outs) {
    const absl::StatusOr<std::string> text = Fs::Real().ReadAll(out);
    Json answer =
        Json::parse(text.value_or(""), nullptr, /*allow_exceptions=*/false);
    if (!answer.is_object()) {
      const absl::StatusOr<std::string> log = Fs::Real().ReadAll(out + ".log");
      std::fprintf(stderr, "%s", log.value_or("").c_str());
      if (status.ok()) {
        status = absl::InternalError(
            absl::StrCat("cox-rates as ", role, " gave no answer"));
      }
      continue;
    }
    answers.push_back(std::move(answer));
  }
  COX_RETURN_IF_ERROR(status);
  return answers;
}

// Median of a stage's number over the processes, 0 without one.
double Median(const std::vector<Json>& answers, const std::string& kind,
              const char* key) {
  std::vector<double> found;
  for (const Json& answer : answers) {
    for (const Json& stage : answer.value("stages", Json::array())) {
      if (stage.value("kind", "") == kind) {
        found.push_back(stage.value(key, 0.0));
      }
    }
  }
  std::sort(found.begin(), found.end());
  return found.empty() ? 0 : found[found.size() / 2];
}

struct Memory {
  double first = 0;  // private, of number 0
  double other = 0;  // mean of the other ones, else the first's
  double mean = 0;
  double libraries = 0;
  double program = 0;
};
Memory MemoryOf(const std::vector<Json>& answers) {
  Memory memory;
  double sum = 0;
  for (const Json& answer : answers) {
    const Json& found = answer["memory"];
    const double bytes = found.value("private_bytes", 0.0);
    if (sum == 0) memory.first = bytes;
    sum += bytes;
    memory.libraries =
        std::max(memory.libraries, found.value("libraries_bytes", 0.0));
    memory.program =
        std::max(memory.program, found.value("program_bytes", 0.0));
  }
  const double n = static_cast<double>(answers.size());
  memory.mean = sum / n;
  memory.other = n > 1 ? (sum - memory.first) / (n - 1) : memory.first;
  return memory;
}

// What the processes of all roles answered.
struct Answers {
  std::vector<Json> learners;
  std::vector<Json> actors;
  std::vector<Json> rewards;
};

void Fill(double* value, double found) {
  if (*value == 0) *value = found;
}

// Work of a unit in model FLOPs: sampling, and the passes that score it.
struct UnitFlops {
  double sample = 0;
  double score = 0;
};
UnitFlops FlopsOf(const v1::RunConfig& config, const RunSizes& sizes,
                  const Json& unit) {
  double tokens = 0;
  for (const Json& prompt : unit["prompts"]) {
    tokens += unit.value("samples", 1.0) *
              static_cast<double>(prompt["ids"].size() +
                                  prompt["instruction_ids"].size());
  }
  double answers = 0;
  for (const Json& length : unit["lengths"]) answers += length.get<double>();
  tokens += answers;
  const double length = sizes.prompt_tokens + sizes.answer_tokens;
  UnitFlops flops;
  flops.sample = ForwardFlops(sizes, tokens, length, answers);
  flops.score = flops.sample + (config.reward().kind() == "rm"
                                    ? ForwardFlops(sizes, tokens, length, 0)
                                    : 0);
  return flops;
}

// `config` as the learners ran it.
void FillTrainRates(const v1::RunConfig& config, const RunSizes& sizes,
                    const Json& job, const std::vector<Json>& learners,
                    ClusterSpec* spec) {
  Fill(&spec->update_mparams_s,
       static_cast<double>(sizes.parameters) /
           (1e6 * std::max(1e-9, learners[0].value("update_s", 1e-9))));
  const bool by_stage = spec->train_gflop_s == 0;
  for (const Json& stage : job.value("stages", Json::array())) {
    const std::string kind = stage.value("kind", "");
    const double rate =
        TrainRate(config, sizes, *spec, kind, Median(learners, kind, "step_s"));
    if (by_stage) spec->stage_train_gflop_s[kind] = rate;
    Fill(&spec->train_gflop_s, rate);
  }
}

void FillUnitRates(const v1::RunConfig& config, const RunSizes& sizes,
                   const Json& job, const Answers& answers, ClusterSpec* spec) {
  const double threads =
      spec->gpus > 0 ? 1 : std::max(1, config.roles().threads());
  const auto rate = [threads](double flops, double seconds) {
    return flops / (1e9 * threads * std::max(1e-9, seconds));
  };
  const bool decode_by_stage = spec->decode_gflop_s == 0;
  const bool score_by_stage = spec->score_gflop_s == 0;
  std::set<std::string> seen;
  for (const Json& unit : job.value("units", Json::array())) {
    const std::string kind = unit.value("kind", "");
    if (!seen.insert(kind).second) continue;  // the first one was timed
    const UnitFlops flops = FlopsOf(config, sizes, unit);
    if (decode_by_stage) {
      const double found =
          rate(flops.sample, Median(answers.actors, kind, "unit_s"));
      spec->stage_decode_gflop_s[kind] = found;
      Fill(&spec->decode_gflop_s, found);
    }
    if (score_by_stage && unit.value("scored", false)) {
      const double found =
          rate(flops.score, Median(answers.rewards, kind, "unit_s"));
      spec->stage_score_gflop_s[kind] = found;
      Fill(&spec->score_gflop_s, found);
    }
  }
}

}  // namespace

absl::Status Rehearsal::Measure(bool local, ClusterSpec* spec) const {
  // A group that the cores hold; the model counts the rest.
  const int room = std::max(1, static_cast<int>(spec->cores) /
                                   std::max(1, config_.roles().threads()));
  v1::RunConfig config = config_;
  config.mutable_roles()->set_learners(
      std::min(std::max(1, config_.roles().learners()), room));
  // One pass over the batch tells what the others cost.
  config.mutable_ppo()->set_epochs(1);
  COX_RETURN_IF_ERROR(WriteFileDurably(
      Fs::Real(), JoinPath(dir_, "config.yaml"), PrintConfig(config)));
  const int actors = std::min(std::max(1, config_.roles().actors()), room);
  Answers answers;
  COX_ASSIGN_OR_RETURN(answers.learners,
                       RunRole(dir_, "learner", config.roles().learners()));
  COX_ASSIGN_OR_RETURN(answers.actors, RunRole(dir_, "actor", actors));
  COX_ASSIGN_OR_RETURN(answers.rewards, RunRole(dir_, "reward", 1));
  FillTrainRates(config, sizes_, job_, answers.learners, spec);
  FillUnitRates(config, sizes_, job_, answers, spec);

  const Memory learner = MemoryOf(answers.learners);
  const Memory actor = MemoryOf(answers.actors);
  const Memory reward = MemoryOf(answers.rewards);
  Fill(&spec->process_mb, answers.learners[0].value("idle_bytes", 0.0) / 1e6);
  Fill(&spec->shared_mb,
       std::max({learner.libraries, actor.libraries, reward.libraries}) / 1e6);
  if (!local) return absl::OkStatus();
  spec->role_private = {{"learner-0", learner.first},
                        {"learner", learner.other},
                        {"actor", actor.mean},
                        {"reward", reward.first},
                        {"coordinator", coordinator_bytes_},
                        {"run", run_bytes_}};
  spec->role_program = {{"learner", learner.program},
                        {"actor", actor.program},
                        {"reward", reward.program},
                        {"coordinator", coordinator_program_},
                        {"run", coordinator_program_}};
  return absl::OkStatus();
}

}  // namespace cox
