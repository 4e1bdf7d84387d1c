#include "cli/bench_ledger.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/bench_report.h"
#include "coordinator/core_host.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/base/rng.h"
#include "lib/base/sync.h"

namespace cox {
namespace {

struct LedgerBenchFlags {
  BenchFlags common;
  int actors = 1000;
  int64_t payload = 4096;
  double seconds = 5;
  int64_t rows = 1000000;
  int64_t rate = 10500;  // submissions/s of the paced runs, 0 = none
  std::string dir = ".";
};

constexpr int64_t kUnitsPerStep = int64_t{1} << 20;  // prompts of a step

RunPlan MakePlan(int64_t units) {
  StagePlan collect;
  collect.kind = StageKind::kCollect;
  collect.total_steps = 1;
  collect.prompt_count = units;
  collect.prompts_per_step = units;
  collect.unit_prompts = 1;
  PlanOptions options;
  options.stages = {collect};
  auto plan = RunPlan::Create(options);
  COX_CHECK(plan.ok());
  return *std::move(plan);
}

// A folder of its own below --dir, removed at the end.
class WorkFolder {
 public:
  explicit WorkFolder(const std::string& dir)
      : path_(JoinPath(dir, absl::StrCat("cox-bench-ledger-", getpid()))) {}
  ~WorkFolder() { static_cast<void>(Fs::Real().RemoveAll(path_)); }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  absl::Status Clear() {
    COX_RETURN_IF_ERROR(Fs::Real().RemoveAll(path_));
    return Fs::Real().MakeDirs(path_);
  }
  const std::string& path() const { return path_; }
  uint64_t BytesOf(const std::string& name) const {
    return Fs::Real().FileSize(JoinPath(path_, name)).value_or(0);
  }
  uint64_t SegmentBytes() const {
    const std::string dir = JoinPath(path_, "segments");
    uint64_t total = 0;
    for (const std::string& name :
         Fs::Real().List(dir).value_or(std::vector<std::string>())) {
      total += Fs::Real().FileSize(JoinPath(dir, name)).value_or(0);
    }
    return total;
  }

 private:
  const std::string path_;
};

// Micros of single synced appends of a page: what this disk can do at best.
absl::StatusOr<std::vector<double>> MeasureSyncs(const WorkFolder& folder) {
  COX_ASSIGN_OR_RETURN(
      auto file, Fs::Real().Create(JoinPath(folder.path(), "sync.bin"), true));
  const std::string page(4096, 'x');
  std::vector<double> micros;
  for (int i = 0; i < 200; ++i) {
    COX_RETURN_IF_ERROR(file->Append(page));
    const MonoTime start = Clock::Real().Now();
    COX_RETURN_IF_ERROR(file->Sync());
    micros.push_back(absl::ToDoubleMicroseconds(Clock::Real().Now() - start));
  }
  COX_RETURN_IF_ERROR(file->Close());
  return micros;
}

class NoEffects : public EffectHandler {
 public:
  void OnEffect(CoordinatorCore&, const Effect&) override {}
  void OnTick(CoordinatorCore&) override {}
  absl::StatusOr<std::string> MakePlaceholder(const UnitId&, const std::string&,
                                              int64_t) override {
    return absl::FailedPreconditionError("no unit fails here");
  }
};

// Actors that hand in one unit after the other, each waiting for its answer.
// One thread stands for the handlers that receive and hash payloads.
class Actors {
 public:
  // `rate`: submissions/s offered; 0 = each actor its next one at once.
  Actors(const LedgerBenchFlags& flags, CoreHost& host, int64_t units,
         int64_t rate)
      : flags_(flags),
        host_(host),
        units_(units),
        rate_(rate),
        payload_(static_cast<size_t>(flags.payload), '\0') {
    CounterRng rng(flags.common.seed, "payload");
    for (char& c : payload_) {
      c = static_cast<char>(rng.NextBelow(256));
    }
  }

  // Registers all; then submits for `seconds`.
  void Run() {
    Prepare();
    const MonoTime start = Clock::Real().Now();
    start_ = start;
    const MonoTime end = start + absl::Seconds(flags_.seconds);
    while (Clock::Real().Now() < end && next_unit_ < units_ && ok()) {
      const int actor = NextActor(end);
      if (actor >= 0) {
        SubmitNext(actor);
      }
    }
    // Whoever waits is answered.
    MutexLock lock(&mutex_);
    answered_cv_.WaitFor(
        mutex_, absl::Seconds(30),
        [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return in_flight_ == 0; });
    seconds_ = absl::ToDoubleSeconds(last_answer_ - start);
  }

  bool ok() const { return !failed_; }
  double rate() const {
    return seconds_ > 0 ? static_cast<double>(micros_.size()) / seconds_ : 0;
  }
  const std::vector<double>& micros() const { return micros_; }

 private:
  CoreCaller Caller(int actor) const {
    return {absl::StrCat("session-", actor), "actor",
            absl::StrCat("actor-", actor), 1, 0};
  }

  void Prepare() {
    Notification ready;
    host_.Post([this, &ready] {
      CoordinatorCore& core = host_.core();
      for (int a = 0; a < flags_.actors; ++a) {
        RegisterEvent event;
        event.caller = Caller(a);
        event.caller.epoch = core.epoch().value;
        failed_ = failed_ || !core.Register(event).ok();
      }
      RegisterEvent learner;
      learner.caller = {"learner", "learner", "learner-0", 1, 0};
      failed_ = failed_ || !core.Register(learner).ok() ||
                !core.Join({learner.caller, 0, 1, ""}).ok();
      learner.caller.generation = core.generation().value;
      failed_ = failed_ ||
                !core.Publish({learner.caller,
                               {"policy", {0, 0}, policy_hash_, "manifest"},
                               "",
                               {}})
                     .ok();
      host_.AfterCommit([&ready](const absl::Status&) { ready.Notify(); });
    });
    ready.WaitFor(absl::InfiniteDuration());
    MutexLock lock(&mutex_);
    for (int a = 0; a < flags_.actors; ++a) {
      idle_.push_back(a);
    }
  }

  // -1: nobody is free yet, or it is too early for the offered rate.
  int NextActor(MonoTime end) {
    if (rate_ > 0) {
      const MonoTime due =
          start_ + absl::Seconds(static_cast<double>(next_unit_) /
                                 static_cast<double>(rate_));
      const absl::Duration early = due - Clock::Real().Now();
      if (early > absl::ZeroDuration()) {
        SleepUnlessShutdown(std::min(early, absl::Milliseconds(1)));
        return -1;
      }
    }
    MutexLock lock(&mutex_);
    idle_cv_.WaitFor(
        mutex_, end - Clock::Real().Now(),
        [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !idle_.empty(); });
    if (idle_.empty()) {
      return -1;
    }
    const int actor = idle_.front();
    idle_.pop_front();
    ++in_flight_;
    return actor;
  }

  void SubmitNext(int actor) {
    const int64_t unit = next_unit_++;
    std::string payload = payload_;
    if (payload.size() >= sizeof(unit)) {
      payload.replace(0, sizeof(unit), reinterpret_cast<const char*>(&unit),
                      sizeof(unit));
    }
    SubmitEvent event;
    event.caller = Caller(actor);
    event.unit = {0, 1, static_cast<int32_t>(unit)};
    event.policy_hash = policy_hash_;
    event.payload_sha256 = Sha256Hex(std::string_view(payload));
    const MonoTime sent = Clock::Real().Now();
    const bool posted = host_.PostSubmit(
        std::move(event), std::move(payload),
        [this, actor, sent](const absl::StatusOr<SubmitResult>& result) {
          OnAnswer(actor, sent,
                   result.ok() && *result == SubmitResult::kAccepted);
        });
    if (!posted) {
      OnAnswer(actor, sent, false);
    }
  }

  void OnAnswer(int actor, MonoTime sent, bool accepted) {
    const MonoTime now = Clock::Real().Now();
    failed_ = failed_ || !accepted;
    MutexLock lock(&mutex_);
    micros_.push_back(absl::ToDoubleMicroseconds(now - sent));
    last_answer_ = now;
    idle_.push_back(actor);
    --in_flight_;
    if (idle_.size() == 1) {
      idle_cv_.NotifyOne();
    }
    if (in_flight_ == 0) {
      answered_cv_.NotifyAll();
    }
  }

  const LedgerBenchFlags& flags_;
  CoreHost& host_;
  const int64_t units_;
  const int64_t rate_;
  const std::string policy_hash_ = Sha256Hex(std::string_view("policy"));
  std::string payload_;
  int64_t next_unit_ = 0;
  std::atomic<bool> failed_ = false;
  MonoTime start_;
  double seconds_ = 0;
  Mutex mutex_;
  CondVar idle_cv_;
  CondVar answered_cv_;
  std::deque<int> idle_ ABSL_GUARDED_BY(mutex_);
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  MonoTime last_answer_ ABSL_GUARDED_BY(mutex_);
  std::vector<double> micros_;
};

absl::StatusOr<std::unique_ptr<CoreHost>> OpenHost(const WorkFolder& folder,
                                                   int64_t units) {
  COX_ASSIGN_OR_RETURN(auto ledger,
                       OpenSqliteLedger(JoinPath(folder.path(), "ledger.db")));
  COX_ASSIGN_OR_RETURN(const LedgerState state, ledger->LoadAll());
  SegmentStore::Options options;
  options.dir = JoinPath(folder.path(), "segments");
  COX_ASSIGN_OR_RETURN(auto segments,
                       SegmentStore::Open(Fs::Real(), options, state.units));
  CoreOptions core_options;
  core_options.label_by_people = true;  // collect without a scorer
  core_options.suspect = absl::Hours(1);
  const Epoch epoch = ledger->epoch();
  COX_ASSIGN_OR_RETURN(
      auto core, CoordinatorCore::Create(core_options, MakePlan(units), state,
                                         epoch, Clock::Real().Now()));
  CoreHostOptions host_options;
  return std::make_unique<CoreHost>(host_options, std::move(core),
                                    std::move(ledger), std::move(segments));
}

struct Submissions {
  std::vector<double> rates;
  std::vector<double> micros;  // of the acknowledgements, all runs
  std::vector<double> rows_per_commit;
  bool ok = true;
};

absl::Status OneRun(const LedgerBenchFlags& flags, WorkFolder& folder,
                    int64_t rate, Submissions& out, BenchUse& use) {
  COX_RETURN_IF_ERROR(folder.Clear());
  const int64_t units = std::min(
      kUnitsPerStep, static_cast<int64_t>(flags.seconds * 100000) + 1000);
  COX_ASSIGN_OR_RETURN(auto host, OpenHost(folder, units));
  NoEffects effects;
  host->Start(&effects);
  Actors actors(flags, *host, units, rate);
  WaitIdle(flags.common.wait_idle_s);
  const BenchMeter meter;
  actors.Run();
  use = meter.Stop();
  const int64_t commits = host->commits();
  host->Stop();
  out.ok = out.ok && actors.ok() && host->fatal().ok();
  out.rates.push_back(actors.rate());
  out.micros.insert(out.micros.end(), actors.micros().begin(),
                    actors.micros().end());
  out.rows_per_commit.push_back(
      static_cast<double>(actors.micros().size()) /
      static_cast<double>(std::max<int64_t>(1, commits)));
  return absl::OkStatus();
}

// Seconds until a coordinator with `rows` submitted units could serve again:
// ledger opened and read, segments checked, core built.
absl::StatusOr<double> MeasureRecovery(WorkFolder& folder, int64_t rows) {
  COX_RETURN_IF_ERROR(folder.Clear());
  const int64_t units = std::min(kUnitsPerStep, std::max<int64_t>(1, rows));
  {
    COX_ASSIGN_OR_RETURN(
        auto ledger, OpenSqliteLedger(JoinPath(folder.path(), "ledger.db")));
    COX_RETURN_IF_ERROR(
        Fs::Real().MakeDirs(JoinPath(folder.path(), "segments")));
    COX_ASSIGN_OR_RETURN(
        auto file,
        Fs::Real().Create(JoinPath(folder.path(), "segments/000001.seg"),
                          /*exclusive=*/true));
    COX_RETURN_IF_ERROR(file->Append(std::string(1 << 20, 'x')));
    COX_RETURN_IF_ERROR(file->Close());
    std::vector<LedgerRow> batch;
    for (int64_t i = 0; i < units; ++i) {
      UnitRow row;
      row.id = {0, 1, static_cast<int32_t>(i)};
      row.policy_hash = Sha256Hex(std::string_view("policy"));
      row.sha256 = Sha256Hex(std::string_view(absl::StrCat("unit ", i)));
      row.payload = {1, static_cast<uint64_t>(i), 1};
      batch.push_back(std::move(row));
      if (batch.size() == 10000 || i + 1 == units) {
        COX_RETURN_IF_ERROR(ledger->Commit(batch));
        batch.clear();
      }
    }
  }
  const MonoTime start = Clock::Real().Now();
  COX_ASSIGN_OR_RETURN(auto host, OpenHost(folder, units));
  return absl::ToDoubleSeconds(Clock::Real().Now() - start);
}

absl::Status Measure(const LedgerBenchFlags& flags, BenchReport& report,
                     bool& ok) {
  WorkFolder folder(flags.dir);
  COX_RETURN_IF_ERROR(folder.Clear());
  COX_ASSIGN_OR_RETURN(const std::vector<double> syncs, MeasureSyncs(folder));
  Submissions warm, all, paced;
  BenchUse use;
  for (int run = 0; run < flags.common.warmup; ++run) {
    COX_RETURN_IF_ERROR(OneRun(flags, folder, 0, warm, use));
  }
  for (int run = 0; run < flags.common.runs; ++run) {
    COX_RETURN_IF_ERROR(OneRun(flags, folder, 0, all, use));
    report.AddRun(use);
  }
  report.Integer("simulated_actors", flags.actors);
  report.Integer("payload", flags.payload);
  // Every actor has its next unit ready, so an answer waits for the turns of
  // all others.
  report.Spread("submits_s", all.rates);
  report.Percentiles("ack_us", all.micros);
  report.Spread("rows_per_commit", all.rows_per_commit);
  report.Percentiles("fsync_us", syncs);
  report.Integer("segment_bytes", static_cast<int64_t>(folder.SegmentBytes()));
  for (int run = 0; flags.rate > 0 && run < flags.common.runs; ++run) {
    COX_RETURN_IF_ERROR(OneRun(flags, folder, flags.rate, paced, use));
  }
  report.Integer("paced_offered_s", flags.rate);
  report.Spread("paced_submits_s", paced.rates);
  report.Percentiles("paced_ack_us", paced.micros);
  report.Integer("rows", flags.rows);
  if (flags.rows > 0) {
    std::vector<double> seconds;
    for (int run = 0; run < std::min(flags.common.runs, 3); ++run) {
      COX_ASSIGN_OR_RETURN(const double s, MeasureRecovery(folder, flags.rows));
      seconds.push_back(s);
    }
    report.Spread("recovery_s", seconds);
  } else {
    report.Null("recovery_s");
  }
  report.Integer("db_bytes", static_cast<int64_t>(folder.BytesOf("ledger.db")));
  ok = warm.ok && all.ok && paced.ok;
  return absl::OkStatus();
}

}  // namespace

int BenchLedger(int argc, char** argv) {
  LedgerBenchFlags flags;
  CLI::App app{
      "Durable submissions through the coordinator's core, segments "
      "and ledger, without gRPC",
      "cox bench ledger"};
  AddBenchFlags(app, flags.common);
  app.add_option("--simulated-actors", flags.actors)
      ->check(CLI::Range(1, 100000));
  app.add_option("--payload", flags.payload, "bytes of a unit")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 26));
  app.add_option("--seconds", flags.seconds, "of a run")
      ->check(CLI::Range(0.1, 3600.0));
  app.add_option("--rows", flags.rows,
                 "units of the recovery measurement, 0 = leave it out; at "
                 "most 2^20")
      ->check(CLI::Range(int64_t{0}, kUnitsPerStep));
  app.add_option("--rate", flags.rate,
                 "submissions per second of the paced runs, which show the "
                 "acknowledgement below saturation; 0 = none")
      ->check(CLI::Range(int64_t{0}, int64_t{10000000}));
  app.add_option("--dir", flags.dir, "a folder on the disk to measure");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitDone : kExitUsage;
  }
  if (!ApplyBenchFlags(flags.common)) {
    return kExitUsage;
  }
  BenchReport report("ledger", flags.common);
  bool ok = false;
  const absl::Status measured = Measure(flags, report, ok);
  if (!measured.ok()) {
    std::fprintf(stderr, "cox bench ledger: %s\n", measured.ToString().c_str());
    return kExitCheckFailed;
  }
  return report.Print(ok);
}

}  // namespace cox
