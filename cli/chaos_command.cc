#include "cli/chaos_command.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "cli/chaos_compare.h"
#include "cli/chaos_plan.h"
#include "cli/chaos_report.h"
#include "cli/chaos_run.h"
#include "cli/run_directory.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/config/config.h"

namespace cox {
namespace {

constexpr int kMaxIdle = 5;

struct Tool {
  int code = -1;
  std::string output;
};

// `cox WORDS...` to its end.
Tool RunCox(const std::vector<std::string>& words, const std::string& log) {
  ChildOptions child;
  child.argv = {JoinPath(ExecutableDir(), "cox")};
  child.argv.insert(child.argv.end(), words.begin(), words.end());
  (void)Fs::Real().RemoveAll(log);
  child.log_path = log;
  Tool tool;
  const auto pid = SpawnChild(child);
  if (!pid.ok()) {
    tool.output = std::string(pid.status().message());
    return tool;
  }
  const ChildExit exit = WaitChild(*pid, absl::Hours(1));
  tool.code = exit.signal != 0 ? -1 : exit.code;
  tool.output = Fs::Real().ReadAll(log).value_or("");
  return tool;
}

// Steps that a learner group began behind the last committed one, over all
// its incarnations: from the log line that says so.
int64_t RedoneSteps(const std::string& run_dir) {
  const std::string log =
      Fs::Real()
          .ReadAll(JoinPath(JoinPath(run_dir, "logs"), "learner-0.log"))
          .value_or("");
  const auto number = [](const std::string& line, const char* key) {
    const size_t at = line.find(key);
    return at == std::string::npos
               ? 0
               : std::atoll(line.c_str() + at + std::string(key).size());
  };
  int64_t redone = 0;
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(log, '\n'))) {
    if (line.find("stage starts") == std::string::npos) continue;
    redone += std::max<int64_t>(
        0, number(line, " committed=") - number(line, " after_step="));
  }
  return redone;
}

class Campaign {
 public:
  Campaign(const ChaosOptions& options, cox::v1::RunConfig config)
      : options_(options), config_(std::move(config)) {
    overrides_ = options_.overrides;
    if (!options_.mode.empty()) {
      overrides_.push_back(absl::StrCat("schedule.mode=", options_.mode));
    }
    figures_.mode = config_.schedule().mode();
    figures_.seed = options_.seed;
    dir_ = options_.dir.empty()
               ? JoinPath("runs", absl::StrCat(config_.name(), "-chaos"))
               : options_.dir;
  }

  absl::Status Run() {
    COX_ASSIGN_OR_RETURN(const std::vector<FaultKind> kinds,
                         ParseFaultKinds(options_.faults));
    COX_ASSIGN_OR_RETURN(const std::vector<std::string> roles,
                         ParseChaosRoles(options_.roles));
    const MonoTime start = Clock::Real().Now();
    COX_RETURN_IF_ERROR(Fs::Real().MakeDirs(dir_));
    if (!streaming()) COX_RETURN_IF_ERROR(Calm());
    ChaosPlanOptions plan;
    plan.kills = options_.kills;
    plan.seed = options_.seed;
    plan.roles = roles;
    plan.kinds = kinds;
    plan.replicas = {{"actor", config_.roles().actors()},
                     {"reward", config_.roles().rewards()},
                     {"learner", config_.roles().learners()}};
    const std::vector<Fault> faults = PlanFaults(plan);
    if (faults.empty()) {
      return absl::InvalidArgumentError(
          "none of these roles can have one of these faults");
    }
    std::deque<Fault> left(faults.begin(), faults.end());
    int idle = 0;  // runs in a row that took no fault
    while (!left.empty() && figures_.problems.empty()) {
      const size_t before = left.size();
      COX_RETURN_IF_ERROR(Disturbed(&left));
      idle = left.size() == before ? idle + 1 : 0;
      if (idle == kMaxIdle) {
        return absl::InvalidArgumentError(
            absl::StrCat("the run is too short for faults: none of ", before,
                         " could be delivered; give it more steps"));
      }
    }
    figures_.wall_s = absl::ToDoubleSeconds(Clock::Real().Now() - start);
    return absl::OkStatus();
  }

  const ChaosFigures& figures() const { return figures_; }

 private:
  bool streaming() const { return config_.schedule().mode() == "streaming"; }

  absl::Status Calm() {
    calm_dir_ = JoinPath(
        dir_, absl::StrCat("calm-", ConfigHash(config_).substr(0, 16)));
    const auto endpoints = ReadEndpoints(calm_dir_);
    if (!endpoints.ok() || endpoints->state != "done") {
      const MonoTime start = Clock::Real().Now();
      std::vector<std::string> words = {
          "run", options_.file, absl::StrCat("run_dir=", calm_dir_), "--quiet"};
      words.insert(words.end(), overrides_.begin(), overrides_.end());
      const Tool run = RunCox(words, JoinPath(dir_, "calm.log"));
      if (run.code != kExitDone) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the undisturbed run ended with ", run.code, ":\n", run.output));
      }
      figures_.calm_s = absl::ToDoubleSeconds(Clock::Real().Now() - start);
    }
    COX_ASSIGN_OR_RETURN(calm_, ReadLedgerOf(calm_dir_));
    if (calm_.steps.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(calm_dir_, ": the undisturbed run has no step"));
    }
    return absl::OkStatus();
  }

  absl::Status Disturbed(std::deque<Fault>* left) {
    const std::string name = absl::StrFormat("%s-%d-%d", figures_.mode,
                                             options_.seed, figures_.runs + 1);
    ChaosRunOptions options;
    options.file = options_.file;
    options.overrides = overrides_;
    options.run_dir = JoinPath(dir_, name);
    options.log = JoinPath(dir_, name + ".log");
    options.proxy =
        std::any_of(left->begin(), left->end(), [](const Fault& fault) {
          return fault.kind == FaultKind::kSlow ||
                 fault.kind == FaultKind::kCut;
        });
    options.patience = absl::Seconds(options_.patience_s);
    (void)Fs::Real().RemoveAll(options.run_dir);
    (void)Fs::Real().RemoveAll(options.log);
    ++figures_.runs;
    ChaosRun run(options, left);
    const absl::Status driven = run.Drive();
    if (absl::IsCancelled(driven)) return driven;
    figures_.starts += run.starts();
    figures_.unexplained += run.unexplained_ends();
    figures_.faults.insert(figures_.faults.end(), run.delivered().begin(),
                           run.delivered().end());
    std::vector<std::string> problems;
    if (!driven.ok()) {
      problems.push_back(std::string(driven.message()));
    } else {
      COX_RETURN_IF_ERROR(Check(options.run_dir, &problems));
    }
    figures_.steps_redone += RedoneSteps(options.run_dir);
    std::printf("run %d: %zu faults, %zu left: %s\n", figures_.runs,
                run.delivered().size(), left->size(),
                problems.empty() ? "equal" : "FAILED");
    std::fflush(stdout);
    if (problems.empty()) {
      ++figures_.equal;
      if (!options_.keep) {
        (void)Fs::Real().RemoveAll(options.run_dir);
        (void)Fs::Real().RemoveAll(options.log);
      }
      return absl::OkStatus();
    }
    for (const std::string& problem : problems) {
      figures_.problems.push_back(absl::StrCat(name, ": ", problem));
    }
    const auto& delivered = run.delivered();
    for (size_t i = delivered.size() > 5 ? delivered.size() - 5 : 0;
         i < delivered.size(); ++i) {
      figures_.problems.push_back(
          absl::StrCat("fault ", i + 1, ": ", FaultText(delivered[i].fault)));
    }
    figures_.problems.push_back(absl::StrCat("kept: ", options.run_dir));
    return absl::OkStatus();
  }

  absl::Status Check(const std::string& run_dir,
                     std::vector<std::string>* problems) {
    COX_ASSIGN_OR_RETURN(const LedgerState hurt, ReadLedgerOf(run_dir));
    figures_.steps += static_cast<int64_t>(hurt.steps.size());
    figures_.units += static_cast<int64_t>(hurt.units.size());
    const auto append = [problems](const std::vector<std::string>& lines) {
      problems->insert(problems->end(), lines.begin(), lines.end());
    };
    if (streaming()) {
      figures_.comparison = "each unit in at most one step";
      append(CheckStreamingLedger(hurt));
      // The record must explain the weights, whatever units there are.
      const int64_t last = hurt.batches.empty() ? 0 : hurt.batches.back().step;
      CheckWith({"replay", run_dir, "--step", "1", "--to", absl::StrCat(last)},
                "replay of every step", &figures_.comparison, problems);
    } else {
      figures_.comparison =
          "weights, batch and units of every step, states of checkpoints";
      append(CompareLedgers(calm_, hurt));
    }
    figures_.ledger.clear();
    CheckWith({"ledger", "verify", run_dir}, "verified", &figures_.ledger,
              problems);
    CheckWith({"ckpt", "verify", run_dir}, "checkpoints verified",
              &figures_.ledger, problems);
    return absl::OkStatus();
  }

  // A command of `cox` that says 0 when all is well. `done` is added to
  // `said`.
  void CheckWith(const std::vector<std::string>& words, const char* done,
                 std::string* said, std::vector<std::string>* problems) {
    const std::string log = JoinPath(dir_, "check.log");
    const Tool tool = RunCox(words, log);
    absl::StrAppend(said, said->empty() ? "" : ", ", done);
    if (tool.code == kExitDone) return;
    problems->push_back(absl::StrCat("cox ", words[0], " ", words[1],
                                     " ended with ", tool.code, ": ",
                                     tool.output));
  }

  const ChaosOptions& options_;
  const cox::v1::RunConfig config_;
  std::vector<std::string> overrides_;
  std::string dir_;
  std::string calm_dir_;
  LedgerState calm_;
  ChaosFigures figures_;
};

}  // namespace

int Chaos(const ChaosOptions& options) {
  std::vector<std::string> overrides = options.overrides;
  if (!options.mode.empty()) {
    overrides.push_back(absl::StrCat("schedule.mode=", options.mode));
  }
  auto config = LoadConfig({.path = options.file,
                            .overrides = overrides,
                            .yaml_text = "",
                            .check_files = true});
  if (!config.ok()) {
    std::fprintf(stderr, "%s\n",
                 std::string(config.status().message()).c_str());
    return ExitCodeFor(config.status());
  }
  Campaign campaign(options, *std::move(config));
  const absl::Status status = campaign.Run();
  if (!status.ok()) {
    std::fprintf(stderr, "chaos: %s\n", std::string(status.message()).c_str());
    return absl::IsCancelled(status) ? kExitRetryable : ExitCodeFor(status);
  }
  const ChaosFigures& figures = campaign.figures();
  std::printf("%s", ChaosTable(figures).c_str());
  if (!options.json.empty()) {
    const absl::Status written =
        WriteFileDurably(Fs::Real(), options.json, ChaosJson(figures));
    if (!written.ok()) {
      std::fprintf(stderr, "chaos: %s\n",
                   std::string(written.message()).c_str());
      return kExitUsage;
    }
  }
  return figures.problems.empty() ? kExitDone : kExitCheckFailed;
}

}  // namespace cox
