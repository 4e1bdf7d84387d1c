// Where the named places of CoreTurn lie: what was done before this process
// was hit there, and what was not.

#include "coordinator/core_turn.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "coordinator/memory_ledger.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

// Says each durable operation as one letter to a pipe that outlives this
// process.
class Tracer {
 public:
  explicit Tracer(int fd) : fd_(fd) {}
  void Say(char letter) { COX_CHECK(write(fd_, &letter, 1) == 1); }

 private:
  const int fd_;
};

class TracedFile : public WritableFile {
 public:
  TracedFile(std::unique_ptr<WritableFile> file, Tracer& tracer)
      : file_(std::move(file)), tracer_(tracer) {}
  absl::Status Append(std::string_view data) override {
    tracer_.Say('a');
    return file_->Append(data);
  }
  absl::Status Sync() override {
    const absl::Status synced = file_->Sync();
    tracer_.Say(synced.ok() ? 's' : 'f');
    return synced;
  }
  absl::Status Close() override { return file_->Close(); }

 private:
  std::unique_ptr<WritableFile> file_;
  Tracer& tracer_;
};

class TracedFs : public FaultFs {
 public:
  explicit TracedFs(Tracer& tracer) : tracer_(tracer) {}
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path, bool exclusive) override {
    COX_ASSIGN_OR_RETURN(auto file, FaultFs::Create(path, exclusive));
    return std::make_unique<TracedFile>(std::move(file), tracer_);
  }

 private:
  Tracer& tracer_;
};

class TracedLedger : public LedgerStore {
 public:
  TracedLedger(std::unique_ptr<LedgerStore> ledger, Tracer& tracer)
      : ledger_(std::move(ledger)), tracer_(tracer) {}
  Epoch epoch() const override { return ledger_->epoch(); }
  int64_t last_transaction() const override {
    return ledger_->last_transaction();
  }
  absl::Status Commit(const std::vector<LedgerRow>& rows) override {
    const absl::Status committed = ledger_->Commit(rows);
    tracer_.Say('c');
    return committed;
  }
  absl::Status CheckFence() override { return ledger_->CheckFence(); }
  absl::StatusOr<LedgerState> Load(const LedgerWindow& options) override {
    return ledger_->Load(options);
  }
  absl::Status Close() override { return ledger_->Close(); }

 private:
  std::unique_ptr<LedgerStore> ledger_;
  Tracer& tracer_;
};

class NoEffects : public EffectHandler {
 public:
  void OnEffect(CoordinatorCore&, const Effect&) override {}
  void OnTick(CoordinatorCore&) override {}
  absl::StatusOr<std::string> MakePlaceholder(const UnitId&, const std::string&,
                                              int64_t) override {
    return std::string("placeholder");
  }
};

// A coordinator with one unit open for actor "a".
struct Turns {
  explicit Turns(Tracer& tracer) : fs(tracer) {
    COX_CHECK(fs.MakeDirs("/run").ok() && fs.SyncDir("/").ok());
    CoreOptions options;
    options.give_up_after = 1;
    PlanOptions plan;
    StagePlan stage;
    stage.kind = StageKind::kPpo;
    stage.total_steps = 1;
    stage.prompt_count = stage.prompts_per_step = stage.unit_prompts = 1;
    plan.stages = {stage};
    auto ledger = OpenMemoryLedger(&disk);
    auto core = CoordinatorCore::Create(options, *RunPlan::Create(plan),
                                        disk.state, ledger->epoch(), now);
    COX_CHECK(core.ok());
    auto segments = SegmentStore::Open(fs, {.dir = "/run/segments"}, {});
    COX_CHECK(segments.ok());
    turn = std::make_unique<CoreTurn>(
        *std::move(core),
        std::make_unique<TracedLedger>(std::move(ledger), tracer),
        *std::move(segments), absl::Seconds(1));
    CoordinatorCore& c = turn->core();
    for (const char* role : {"learner", "actor", "reward"}) {
      COX_CHECK(c.Register({Caller(role), "127.0.0.1:3", "", 0}).ok());
    }
    COX_CHECK(c.Join({Caller("learner"), 0, 1, "l:9"}).ok());
    for (const char* model : {"policy", "reference"}) {
      const VersionRow version{model, {0, 0}, model, ""};
      COX_CHECK(c.Publish({Caller("learner"), version, "l:1"}).ok());
    }
    COX_CHECK(c.ReportHeld(Caller("reward"), {"reference"}, "r:1").ok());
    COX_CHECK(c.Lease(Caller("actor"), 1)->size() == 1);
    turn->Start(&handler, now);
    COX_CHECK(Run({}).ok());
  }
  CoreCaller Caller(const std::string& role) {
    return {role, role, role, turn->core().epoch().value,
            role == "learner" ? turn->core().generation().value : 0};
  }
  CoreTurn::Item Submission(Tracer& tracer) {
    CoreTurn::Item item;
    item.submit.emplace();
    item.submit->caller = Caller("actor");
    item.submit->unit = {0, 1, 0};
    item.submit->policy_hash = "policy";
    item.submit->payload_sha256 = "x";
    item.payload = "payload";
    item.reply = [&tracer](const absl::StatusOr<SubmitResult>&) {
      tracer.Say('r');
    };
    return item;
  }
  absl::Status Run(std::vector<CoreTurn::Item> items) {
    return turn->Run(now, 0, std::move(items), /*parking=*/true);
  }

  TracedFs fs;
  MemoryDisk disk;
  MonoTime now{1};
  NoEffects handler;
  std::unique_ptr<CoreTurn> turn;
};

// What a process does that hands in one unit and is hit at its first passage of
// `point` from then on: its operations, then '!' if it was killed, 'e' if the
// turn failed.
std::string Trace(const std::string& point, const std::string& action,
                  bool sync_fails = false) {
  int ends[2] = {};
  COX_CHECK(pipe(ends) == 0);
  const pid_t pid = fork();
  if (pid == 0) {
    close(ends[0]);
    Tracer tracer(ends[1]);
    Turns turns(tracer);
    tracer.Say('|');
    if (sync_fails) {
      turns.fs.FailAt(3, absl::InternalError("the disk failed"), true);
    }
    // The environment says in which file to look.
    COX_CHECK(WriteFileDurably(Fs::Real(),
                               std::string(getenv("COX_FAILPOINT")).substr(1),
                               point + ":1:" + action + "\n")
                  .ok());
    std::vector<CoreTurn::Item> items;
    items.push_back(turns.Submission(tracer));
    if (!turns.Run(std::move(items)).ok()) tracer.Say('e');
    _exit(0);
  }
  close(ends[1]);
  std::string trace;
  char letter = 0;
  while (read(ends[0], &letter, 1) == 1) trace += letter;
  close(ends[0]);
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  // What was not passed stays armed: not for this process.
  EXPECT_OK(
      Fs::Real().RemoveAll(std::string(getenv("COX_FAILPOINT")).substr(1)));
  return trace.substr(trace.find('|') + 1) + (WIFSIGNALED(status) ? "!" : "");
}

TEST(CoreTurn, APlaceIsWhereItsNameSays) {
  EXPECT_EQ(Trace("nowhere", "kill"), "aascr")
      << "payload and seal appended, sync, commit, reply";
  EXPECT_EQ(Trace("segment.appended", "kill"), "a!");
  EXPECT_EQ(Trace("segment.synced", "kill"), "aas!");
  EXPECT_EQ(Trace("ledger.decided", "kill"), "aas!");
  EXPECT_EQ(Trace("ledger.committed", "kill"), "aasc!");
  EXPECT_EQ(Trace("ledger.replied", "kill"), "aascr!");
}

TEST(CoreTurn, AnErrorThereEndsTheTurnBeforeWhatFollows) {
  EXPECT_EQ(Trace("segment.appended", "enospc"), "ae");
  EXPECT_EQ(Trace("ledger.decided", "eio"), "aase");
}

TEST(CoreTurn, WhatWasNotSyncedIsNotCalledSynced) {
  EXPECT_EQ(Trace("segment.synced", "kill", /*sync_fails=*/true), "aafe");
}

TEST(CoreTurn, APlaceholderIsSyncedBeforeItsRow) {
  Tracer tracer(open("/dev/null", O_WRONLY));
  Turns turns(tracer);
  CoreTurn::Item item;
  item.task = [&turns] {
    EXPECT_OK(turns.turn->core().ReturnFailed(turns.Caller("actor"),
                                              {{0, 1, 0}}, "it cannot"));
  };
  std::vector<CoreTurn::Item> items;
  items.push_back(std::move(item));
  ASSERT_OK(turns.Run(std::move(items)));
  ASSERT_EQ(turns.disk.state.failed_units.size(), 1u);
  ASSERT_EQ(turns.disk.state.units.size(), 1u);
  const UnitRow& row = turns.disk.state.units[0];
  CounterRng rng(1, "power");
  turns.fs.Crash(rng);  // power loss
  ASSERT_OK_AND_ASSIGN(
      const std::string payload,
      ReadPayload(turns.fs, "/run/segments", row.payload, row.sha256));
  EXPECT_EQ(payload, "placeholder");
}

}  // namespace
}  // namespace cox
