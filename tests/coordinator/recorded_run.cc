#include "tests/coordinator/recorded_run.h"

#include <sqlite3.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/plan_record.h"
#include "coordinator/segments.h"
#include "coordinator/step_record.h"
#include "gtest/gtest.h"
#include "lib/base/hash.h"
#include "lib/data/trajectory.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

constexpr int32_t kSft = 0;
constexpr int32_t kPpo = 1;

std::string Manifest(int32_t stage, int64_t step) {
  return absl::StrCat("manifest of stage ", stage, " step ", step);
}
std::string Weights(int32_t stage, int64_t step) {
  return Sha256Hex(Manifest(stage, step));
}

std::string Payload(const UnitId& id, int64_t version) {
  std::vector<Trajectory> rows;
  for (int32_t prompt = 0; prompt < 2; ++prompt) {
    Trajectory& t = rows.emplace_back();
    t.id = {id, prompt, 0};
    t.prompt_id = static_cast<uint64_t>(id.step * 16 + id.index * 2 + prompt);
    t.prompt_ids = {1, 2, prompt};
    t.response_ids = {3, static_cast<int32_t>(id.step)};
    t.behaviour_logprobs = {-0.5f, -1.0f};
    t.reference_logprobs = {-0.25f, -1.0f};
    t.reward_total = 0.5 * prompt;
    t.reward_parts = {{"table", 0.5 * prompt}};
    t.policy_hash = Weights(kPpo, version);
    t.version = {kPpo, version};
  }
  absl::StatusOr<std::string> bytes = SerializeUnit(rows);
  EXPECT_OK(bytes.status());
  return bytes.value_or("");
}

class Writer {
 public:
  Writer(const std::string& run_dir, ScheduleMode mode, uint64_t segment_bytes)
      : mode_(mode) {
    written_.run_dir = run_dir;
    written_.run_id = "00112233445566778899aabbccddeeff";
    auto ledger = OpenSqliteLedger(JoinPath(run_dir, "ledger.db"));
    EXPECT_OK(ledger.status());
    ledger_ = *std::move(ledger);
    auto segments = SegmentStore::Open(
        Fs::Real(),
        {.dir = JoinPath(run_dir, "segments"), .segment_bytes = segment_bytes},
        {});
    EXPECT_OK(segments.status());
    segments_ = *std::move(segments);
  }

  WrittenRun Write() {
    Commit({MetaRow{"run_id", written_.run_id},
            MetaRow{"plan", PlanRecord(RecordedPlan(mode_))}});
    Commit({GenerationRow{Generation{1}}, Event("group")});
    for (int64_t step = 1; step <= 2; ++step) {
      Commit({Step(kSft, step, Sha256Hex("text"), 1)});
    }
    Commit({Checkpoint(kSft, 2, 1)});
    Commit({StageRow{kSft, "done", 2, {}}});
    Commit({GenerationRow{Generation{2}}});
    Publish(0);
    for (int64_t step = 1; step <= 3; ++step) {
      PpoStep(step);
    }
    Commit({StageRow{kPpo, "done", 3, {}}});
    EXPECT_OK(ledger_->Close());
    return std::move(written_);
  }

 private:
  void Commit(const std::vector<LedgerRow>& rows) {
    EXPECT_OK(ledger_->Commit(rows));
  }
  EventRow Event(const std::string& text) {
    return {++events_, 1.5, "test", text};
  }
  StepRow Step(int32_t stage, int64_t step, const std::string& batch,
               int64_t generation) {
    StepRow row;
    row.stage = stage;
    row.step = step;
    row.batch_sha256 = batch;
    row.weight_hash = Weights(stage, step);
    row.generation = {generation};
    return row;
  }
  CheckpointRow Checkpoint(int32_t stage, int64_t step, int64_t generation) {
    CheckpointRow row{stage,
                      step,
                      absl::StrCat("/c/stage", stage, "/step_", step),
                      Sha256Hex("manifest"),
                      Weights(stage, step),
                      Sha256Hex("state"),
                      {generation}};
    written_.checkpoints.push_back(row);
    return row;
  }
  void Publish(int64_t step) {
    Commit({VersionRow{
        "policy", {kPpo, step}, Weights(kPpo, step), Manifest(kPpo, step)}});
  }
  UnitRow Submit(const UnitId& id, int64_t version) {
    const std::string payload = Payload(id, version);
    absl::StatusOr<PayloadRef> ref = segments_->Append(payload);
    EXPECT_OK(ref.status());
    EXPECT_OK(segments_->Sync());
    UnitRow row{id, version, Weights(kPpo, version), Sha256Hex(payload), *ref};
    Commit({row});
    return row;
  }

  void PpoStep(int64_t step) {
    const int64_t version = mode_ == ScheduleMode::kFixedLag
                                ? std::max<int64_t>(0, step - 2)
                                : step - 1;
    // Unit order differs from the order of arrival.
    std::vector<UnitRow> units(2);
    units[1] = Submit({kPpo, step, 1}, version);
    units[0] = Submit({kPpo, step, 0}, version);
    if (mode_ == ScheduleMode::kStreaming) {
      BatchRow batch{kPpo, step, {}, {}};
      if (step == 1) {
        // One stays in the queue and is too old by step 3.
        const UnitRow third = Submit({kPpo, 4, 0}, 0);
        units = {units[1], units[0]};
      } else if (step == 3) {
        batch.dropped = {{kPpo, 4, 0}};
        units = {units[1], units[0]};
      }
      batch.units = {units[0].id, units[1].id};
      Commit({batch});
    }
    Commit({Step(kPpo, step, BatchHash(ToBatchUnits(units)), 2)});
    if (step >= 2) {
      Commit({Checkpoint(kPpo, step, 2), Event("checkpoint")});
    }
    if (step < 3) {
      Publish(step);
    }
  }

  const ScheduleMode mode_;
  WrittenRun written_;
  std::unique_ptr<LedgerStore> ledger_;
  std::unique_ptr<SegmentStore> segments_;
  int64_t events_ = 0;
};

}  // namespace

PlanOptions RecordedPlan(ScheduleMode mode) {
  PlanOptions options;
  options.seed = 7;
  options.schedule.mode = mode;
  options.schedule.lag = mode == ScheduleMode::kFixedLag ? 1 : 0;
  options.schedule.eta = mode == ScheduleMode::kStreaming ? 1 : 0;
  StagePlan sft;
  sft.kind = StageKind::kSft;
  sft.total_steps = 2;
  StagePlan ppo;
  ppo.kind = StageKind::kPpo;
  ppo.total_steps = 3;
  ppo.prompt_count = 10;
  ppo.prompts_per_step = 4;
  ppo.unit_prompts = 2;
  options.stages = {sft, ppo};
  return options;
}

WrittenRun WriteRecordedRun(const std::string& run_dir, ScheduleMode mode,
                            uint64_t segment_bytes) {
  return Writer(run_dir, mode, segment_bytes).Write();
}

void Tamper(const std::string& run_dir, const std::string& sql) {
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(JoinPath(run_dir, "ledger.db").c_str(), &db),
            SQLITE_OK);
  char* error = nullptr;
  EXPECT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, &error), SQLITE_OK)
      << sql << ": " << (error == nullptr ? "" : error);
  EXPECT_GT(sqlite3_total_changes(db), 0) << sql;
  sqlite3_free(error);
  sqlite3_close(db);
}

}  // namespace cox
