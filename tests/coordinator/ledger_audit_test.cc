// `cox ledger verify`: sound ledgers pass; each invariant, broken once, is
// found and named. And reading leaves no byte changed.

#include "coordinator/ledger_audit.h"

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/plan_record.h"
#include "coordinator/segments.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/hash.h"
#include "tests/coordinator/recorded_run.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;
using ::testing::HasSubstr;

// What the files of a checkpoint would say that is as its row claims.
CheckpointFacts FactsOf(const CheckpointRow& row, const std::string& batch) {
  CheckpointFacts facts;
  facts.run_id = "00112233445566778899aabbccddeeff";
  facts.stage = row.stage;
  facts.step = row.step;
  facts.generation = row.generation.value;
  facts.batch_sha256 = batch;
  facts.weight_hash = row.weight_hash;
  facts.trained_hash = row.weight_hash;
  facts.state_sha256 = row.state_sha256;
  facts.files = {"policy/config.json", "trainer/version_0/config.json",
                 "trainer/version_1/config.json", "trainer/state.bin"};
  return facts;
}

using FactsFunction =
    std::function<absl::StatusOr<std::optional<CheckpointFacts>>(
        const CheckpointRow&, CheckpointFacts)>;

AuditReport Audit(const std::string& run_dir,
                  const FactsFunction& facts = nullptr) {
  absl::StatusOr<RecordedRun> run = RecordedRun::Open(Fs::Real(), run_dir);
  EXPECT_OK(run.status());
  AuditOptions options;
  options.checkpoint = [&](const CheckpointRow& row)
      -> absl::StatusOr<std::optional<CheckpointFacts>> {
    const StepRow* step = run->FindStep(row.stage, row.step);
    CheckpointFacts sound =
        FactsOf(row, step == nullptr ? "" : step->batch_sha256);
    if (facts != nullptr) {
      return facts(row, sound);
    }
    return std::optional<CheckpointFacts>(sound);
  };
  return AuditLedger(*run, options);
}

std::string Describe(const AuditReport& report) {
  std::string text;
  for (const AuditFinding& finding : report.findings) {
    if (finding.violations > 0) {
      absl::StrAppend(&text, finding.name, " (", finding.violations,
                      "): ", finding.first, "\n");
    }
  }
  return text;
}

class SoundLedger : public ::testing::TestWithParam<ScheduleMode> {};

TEST_P(SoundLedger, PassesAndEverythingWasCounted) {
  TempDir dir;
  WriteRecordedRun(dir.path(), GetParam());
  const AuditReport report = Audit(dir.path());
  EXPECT_TRUE(report.ok()) << Describe(report);
  const bool streaming = GetParam() == ScheduleMode::kStreaming;
  EXPECT_EQ(report.of(Invariant::kStepsContiguous).checked, 5);
  EXPECT_EQ(report.of(Invariant::kUnitInOneStep).checked, 6);
  EXPECT_EQ(report.of(Invariant::kStepUnits).checked, 3);
  EXPECT_EQ(report.of(Invariant::kPayloadHash).checked, streaming ? 7 : 6);
  EXPECT_EQ(report.of(Invariant::kBatchHash).checked, 3);
  EXPECT_EQ(report.of(Invariant::kWeightHashes).checked, 3);
  EXPECT_EQ(report.of(Invariant::kCheckpointFiles).checked, 3);
  for (const AuditFinding& finding : report.findings) {
    EXPECT_GT(finding.checked, 0) << finding.name;
  }
}

// Every file of a run directory, with its bytes' hash.
std::map<std::string, std::string> Bytes(const std::string& dir) {
  std::map<std::string, std::string> files;
  const auto names = Fs::Real().List(dir);
  for (const std::string& name : names.value_or(std::vector<std::string>())) {
    const std::string path = JoinPath(dir, name);
    const auto text = Fs::Real().ReadAll(path);
    if (text.ok()) {
      files[path] = Sha256Hex(*text);
    } else {
      files.merge(Bytes(path));
    }
  }
  return files;
}

TEST_P(SoundLedger, ReadingChangesNoByteAndLeavesNoFile) {
  TempDir dir;
  WriteRecordedRun(dir.path(), GetParam());
  const auto before = Bytes(dir.path());
  EXPECT_EQ(before.size(), 2u);  // ledger.db and one segment
  Audit(dir.path());
  EXPECT_EQ(Bytes(dir.path()), before);
}

TEST_P(SoundLedger, PassesWhileAWriterHasItOpen) {
  TempDir dir;
  WriteRecordedRun(dir.path(), GetParam());
  ASSERT_OK_AND_ASSIGN(auto writer,
                       OpenSqliteLedger(JoinPath(dir.path(), "ledger.db")));
  ASSERT_OK(writer->Commit({EventRow{4, 2.0, "late", "in the log only"}}));
  const AuditReport report = Audit(dir.path());
  EXPECT_TRUE(report.ok()) << Describe(report);
  ASSERT_OK_AND_ASSIGN(const RecordedRun run,
                       RecordedRun::Open(Fs::Real(), dir.path()));
  EXPECT_EQ(run.record().epoch.value, 2);
  ASSERT_OK(writer->Commit({EventRow{5, 3.0, "later", "still writable"}}));
}

INSTANTIATE_TEST_SUITE_P(Modes, SoundLedger,
                         ::testing::Values(ScheduleMode::kSync,
                                           ScheduleMode::kFixedLag,
                                           ScheduleMode::kStreaming));

struct Damage {
  const char* name;
  ScheduleMode mode;
  const char* sql;
  Invariant invariant;
  const char* first;  // in the message about the first offending row
};

// Written once per mode: syncing dozens of ledgers takes seconds.
void CopyRecordedRun(ScheduleMode mode, const std::string& to) {
  static auto* const written =
      new std::map<ScheduleMode, std::unique_ptr<TempDir>>();
  std::unique_ptr<TempDir>& from = (*written)[mode];
  if (from == nullptr) {
    from = std::make_unique<TempDir>();
    WriteRecordedRun(from->path(), mode);
  }
  std::filesystem::copy(from->path(), to,
                        std::filesystem::copy_options::recursive);
}

class DamagedLedger : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedLedger, IsFoundAndNamed) {
  TempDir dir;
  CopyRecordedRun(GetParam().mode, dir.path());
  Tamper(dir.path(), GetParam().sql);
  const AuditReport report = Audit(dir.path());
  EXPECT_FALSE(report.ok());
  const AuditFinding& finding = report.of(GetParam().invariant);
  EXPECT_GT(finding.violations, 0) << Describe(report);
  EXPECT_THAT(finding.first, HasSubstr(GetParam().first)) << Describe(report);
}

constexpr ScheduleMode kSync = ScheduleMode::kSync;
constexpr ScheduleMode kLag = ScheduleMode::kFixedLag;
constexpr ScheduleMode kStreaming = ScheduleMode::kStreaming;

INSTANTIATE_TEST_SUITE_P(
    Rows, DamagedLedger,
    ::testing::Values(
        Damage{"StepMissing", kSync,
               "DELETE FROM step WHERE stage=1 AND step=2",
               Invariant::kStepsContiguous, "ppo step 3: expected step 2"},
        Damage{"LastStepMissing", kSync,
               "DELETE FROM step WHERE stage=0 AND step=2",
               Invariant::kStepsContiguous, "sft: done with 1 of 2"},
        Damage{"UnitTwice", kStreaming,
               "UPDATE batch SET units='1.0 1.1' WHERE step=2",
               Invariant::kUnitInOneStep, "unit s1.1.0: also in step 1"},
        Damage{"UnitMissing", kSync,
               "DELETE FROM unit WHERE stage=1 AND step=2 AND idx=1",
               Invariant::kStepUnits, "ppo step 2: units: expected 2, found 1"},
        Damage{"UnitMissingInStreaming", kStreaming,
               "DELETE FROM unit WHERE stage=1 AND step=2 AND idx=1",
               Invariant::kStepUnits, "names unit s1.2.1"},
        Damage{"SubmittedAfterItsStep", kLag,
               "UPDATE unit SET txn=20 WHERE step=1 AND idx=1",
               Invariant::kStepUnits, "ppo step 1 unit s1.1.1"},
        Damage{"SubmittedAfterItsBatch", kStreaming,
               "UPDATE unit SET txn=(SELECT txn FROM batch WHERE step=2)+1 "
               "WHERE step=2 AND idx=0",
               Invariant::kStepUnits, "submitted after its batch"},
        Damage{"OtherResult", kSync,
               "UPDATE unit SET sha256=(SELECT sha256 FROM unit WHERE step=1 "
               "AND idx=0) WHERE step=2 AND idx=0",
               Invariant::kPayloadHash, "ppo step 2 unit s1.2.0"},
        Damage{"OtherUnitsBytes", kSync,
               "UPDATE unit SET (sha256,segment,offset,length)=(SELECT sha256,"
               "segment,offset,length FROM unit WHERE step=1 AND idx=0) "
               "WHERE step=2 AND idx=0",
               Invariant::kPayloadHash, "hold trajectory s1.1.0/0.0"},
        Damage{"BatchHash", kSync,
               "UPDATE step SET batch_sha256='00' WHERE stage=1 AND step=3",
               Invariant::kBatchHash, "ppo step 3: batch hash: expected 00"},
        Damage{"BatchOrder", kStreaming,
               "UPDATE batch SET units='2.1 2.0' WHERE step=2",
               Invariant::kBatchHash, "ppo step 2"},
        Damage{"Version", kLag,
               "UPDATE unit SET version_step=2 WHERE step=3 AND idx=0",
               Invariant::kUnitVersion,
               "unit s1.3.0: version: expected 1, found 2"},
        Damage{"Stale", kStreaming,
               "UPDATE unit SET version_step=0 WHERE step=3 AND idx=0",
               Invariant::kStaleness,
               "unit s1.3.0: staleness 2, expected 0 to 1"},
        Damage{"FromTheFuture", kStreaming,
               "UPDATE unit SET version_step=2 WHERE step=2 AND idx=0",
               Invariant::kStaleness, "staleness -1"},
        Damage{"OtherWeights", kSync,
               "UPDATE unit SET policy_hash='ab' WHERE step=2 AND idx=1",
               Invariant::kPublishedWeights, "unit s1.2.1: weights"},
        Damage{"NeverPublished", kSync, "DELETE FROM version WHERE step=1",
               Invariant::kPublishedWeights, "version 1 was never published"},
        Damage{"SampledBeforePublished", kSync,
               "UPDATE version SET txn=25 WHERE step=0",
               Invariant::kPublishedWeights, "before its version"},
        Damage{"StepsWeights", kSync,
               "UPDATE step SET weight_hash='cd' WHERE stage=1 AND step=1",
               Invariant::kWeightHashes, "policy s1v1"},
        Damage{"ManifestOfVersion", kSync,
               "UPDATE version SET manifest='{}' WHERE step=1",
               Invariant::kWeightHashes, "hash of its manifest"},
        Damage{"PublishedBeforeCommitted", kSync,
               "UPDATE version SET txn=1 WHERE step=2",
               Invariant::kWeightHashes, "published before"},
        Damage{"GenerationDecreases", kSync,
               "UPDATE step SET generation=1 WHERE stage=1 AND step=2",
               Invariant::kGenerations, "generation 1 after 2"},
        Damage{"GenerationUnknown", kSync,
               "UPDATE ckpt SET generation=9 WHERE stage=1 AND step=3",
               Invariant::kGenerations, "the newest is 2"},
        Damage{"EpochDecreases", kSync, "UPDATE txn SET epoch=0 WHERE number=5",
               Invariant::kEpochs, "transaction 5: epoch 0 after 1"},
        Damage{"TransactionMissing", kSync, "DELETE FROM txn WHERE number=4",
               Invariant::kEpochs, "transaction 5: expected number 4"},
        Damage{"EventMissing", kSync, "DELETE FROM event WHERE number=2",
               Invariant::kEpochs, "event 3: expected number 2"},
        Damage{"OtherRun", kSync,
               "UPDATE txn SET run_id='other' WHERE number=6",
               Invariant::kRunId, "transaction 6"},
        Damage{"CheckpointsWeights", kSync,
               "UPDATE ckpt SET weight_hash='ef' WHERE stage=1 AND step=2",
               Invariant::kCheckpointOfStep, "ppo step 2 checkpoint"},
        Damage{"CheckpointWithoutStep", kSync,
               "UPDATE ckpt SET step=1 WHERE stage=0",
               Invariant::kCheckpointOfStep, "sft step 1"},
        Damage{"OutsideThePlan", kSync,
               "UPDATE unit SET idx=5 WHERE step=3 AND idx=1",
               Invariant::kConservation, "unit s1.3.5: not in the plan"},
        Damage{"StageHasTooFew", kSync,
               "DELETE FROM unit WHERE step=3 AND idx=1",
               Invariant::kConservation, "expected 6, found 5"},
        Damage{"DroppedAndTrained", kStreaming,
               "UPDATE batch SET dropped='1.0' WHERE step=3",
               Invariant::kConservation, "unit s1.1.0: dropped"},
        Damage{"LastCheckpointGone", kSync,
               "DELETE FROM ckpt WHERE stage=1 AND step=3",
               Invariant::kNothingDeleted, "ppo: done without"},
        Damage{"SharedBytes", kSync,
               "UPDATE unit SET offset=(SELECT offset FROM unit WHERE step=1 "
               "AND idx=1)+1 WHERE step=1 AND idx=0",
               Invariant::kNothingDeleted, "also those of unit s1.1.1"}),
    [](const ::testing::TestParamInfo<Damage>& damage) {
      return std::string(damage.param.name);
    });

TEST(LedgerAuditTest, OneFlippedByteOfASegmentNamesItsUnit) {
  TempDir dir;
  WriteRecordedRun(dir.path(), kSync);
  ASSERT_OK_AND_ASSIGN(const RecordedRun run,
                       RecordedRun::Open(Fs::Real(), dir.path()));
  const UnitRow* unit = run.FindUnit({1, 2, 1});
  ASSERT_NE(unit, nullptr);
  const std::string path =
      SegmentPath(run.SegmentsDir(), unit->payload.segment);
  ASSERT_OK_AND_ASSIGN(std::string bytes, Fs::Real().ReadAll(path));
  bytes[unit->payload.offset + unit->payload.length / 2] ^= 0x10;
  ASSERT_OK(WriteFileDurably(Fs::Real(), path, bytes));
  const AuditReport report = Audit(dir.path());
  EXPECT_EQ(report.of(Invariant::kPayloadHash).violations, 1);
  EXPECT_THAT(report.of(Invariant::kPayloadHash).first,
              HasSubstr("ppo step 2 unit s1.2.1"));
}

TEST(LedgerAuditTest, ATruncatedSegmentIsSomethingDeleted) {
  TempDir dir;
  WriteRecordedRun(dir.path(), kSync);
  ASSERT_OK(
      Fs::Real().Truncate(JoinPath(dir.path(), "segments/000001.seg"), 30));
  const AuditReport report = Audit(dir.path());
  EXPECT_EQ(report.of(Invariant::kNothingDeleted).violations, 6);
  EXPECT_EQ(report.of(Invariant::kPayloadHash).violations, 6);
}

TEST(LedgerAuditTest, CheckpointFilesAreComparedWithRowAndStep) {
  TempDir dir;
  WriteRecordedRun(dir.path(), kLag);
  struct Case {
    std::function<void(CheckpointFacts&)> change;
    Invariant invariant;
  };
  const Case cases[] = {
      {[](CheckpointFacts& f) { f.run_id = "x"; }, Invariant::kRunId},
      {[](CheckpointFacts& f) { f.step = 1; }, Invariant::kCheckpointOfStep},
      {[](CheckpointFacts& f) { f.trained_hash = "x"; },
       Invariant::kCheckpointOfStep},
      {[](CheckpointFacts& f) { f.weight_hash = "x"; },
       Invariant::kCheckpointOfStep},
      {[](CheckpointFacts& f) { f.batch_sha256 = "x"; },
       Invariant::kCheckpointOfStep},
      {[](CheckpointFacts& f) { f.state_sha256 = "x"; },
       Invariant::kCheckpointFiles},
      {[](CheckpointFacts& f) { f.files = {"policy/config.json"}; },
       Invariant::kNothingDeleted}};
  for (const Case& c : cases) {
    const AuditReport report =
        Audit(dir.path(),
              [&c](const CheckpointRow& row, CheckpointFacts facts)
                  -> absl::StatusOr<std::optional<CheckpointFacts>> {
                if (row.stage == 1 && row.step == 2) {
                  c.change(facts);
                }
                return std::optional<CheckpointFacts>(facts);
              });
    EXPECT_EQ(report.of(c.invariant).violations, 1) << Describe(report);
    EXPECT_THAT(report.of(c.invariant).first, HasSubstr("ppo step 2"));
  }
  const AuditReport missing = Audit(
      dir.path(),
      [](const CheckpointRow&,
         CheckpointFacts) -> absl::StatusOr<std::optional<CheckpointFacts>> {
        return absl::NotFoundError("/c: gone");
      });
  EXPECT_EQ(missing.of(Invariant::kCheckpointFiles).violations, 3);
  EXPECT_EQ(missing.of(Invariant::kNothingDeleted).violations, 3);
  const AuditReport retained = Audit(
      dir.path(),
      [](const CheckpointRow&,
         CheckpointFacts) -> absl::StatusOr<std::optional<CheckpointFacts>> {
        return std::optional<CheckpointFacts>();
      });
  EXPECT_TRUE(retained.ok()) << Describe(retained);
}

TEST(LedgerReaderTest, SaysWhatIsThere) {
  TempDir dir;
  EXPECT_THAT(RecordedRun::Open(Fs::Real(), dir.path()),
              StatusIs(absl::StatusCode::kNotFound));
  WriteRecordedRun(dir.path(), kStreaming);
  ASSERT_OK_AND_ASSIGN(const RecordedRun run,
                       RecordedRun::Open(Fs::Real(), dir.path()));
  ASSERT_OK_AND_ASSIGN(const auto units, run.UnitsOfStep(1, 1));
  ASSERT_EQ(units.size(), 2u);
  EXPECT_EQ(units[0].id, (UnitId{1, 1, 1}));  // frozen order
  ASSERT_OK_AND_ASSIGN(const auto rows, run.ReadUnit(units[0]));
  EXPECT_EQ(rows.size(), 2u);
  EXPECT_EQ(*run.FindStage("ppo"), 1);
  EXPECT_EQ(*run.FindStage("0"), 0);
  EXPECT_THAT(run.FindStage("rm"),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(run.NewestCheckpoint(1, 2)->step, 2);
  EXPECT_EQ(run.NewestCheckpoint(1, 1), nullptr);
}

TEST(LedgerReaderTest, IdsReadBack) {
  const TrajectoryId id{{4, 12, 3}, 5, 1};
  ASSERT_OK_AND_ASSIGN(const TrajectoryId back,
                       ParseTrajectoryId(id.ToString()));
  EXPECT_EQ(back, id);
  ASSERT_OK_AND_ASSIGN(const UnitId unit, ParseUnitId(id.unit.ToString()));
  EXPECT_EQ(unit, id.unit);
  for (const char* bad :
       {"", "s4", "s4.1", "s4.1.2 ", "s4.01.2", "4.1.2", "s4.1.2/", "s4.1.2/3",
        "s4.1.2/3.4x", "s1.1.1/+1.0"}) {
    EXPECT_FALSE(ParseTrajectoryId(bad).ok()) << bad;
  }
}

TEST(PlanRecordTest, ReadsBack) {
  for (const ScheduleMode mode : {kSync, kLag, kStreaming}) {
    const PlanOptions options = RecordedPlan(mode);
    ASSERT_OK_AND_ASSIGN(const PlanOptions back,
                         ParsePlanRecord(PlanRecord(options)));
    EXPECT_EQ(PlanRecord(back), PlanRecord(options));
  }
  for (const char* bad : {"", "{}", "[]",
                          "{\"seed\":1,\"mode\":\"x\","
                          "\"stages\":[]}"}) {
    EXPECT_THAT(ParsePlanRecord(bad), StatusIs(absl::StatusCode::kDataLoss));
  }
}

void Commit(const std::string& run_dir, const std::vector<LedgerRow>& rows) {
  auto ledger = OpenSqliteLedger(JoinPath(run_dir, "ledger.db"));
  ASSERT_OK(ledger.status());
  ASSERT_OK((*ledger)->Commit(rows));
  ASSERT_OK((*ledger)->Close());
}

// Checkpoints of steps 2 and 3 are there: payloads up to step 2 may go.
TEST_P(SoundLedger, RetiredPayloadsAreKnownAndNeededOnesMissed) {
  TempDir dir;
  WriteRecordedRun(dir.path(), GetParam(), /*segment_bytes=*/1);
  const auto segment_of = [&](const UnitId& id) {
    const auto run = RecordedRun::Open(Fs::Real(), dir.path());
    return run.ok() ? run->FindUnit(id)->payload.segment : 0;
  };
  const auto retire = [&](const UnitId& id) {
    const int32_t segment = segment_of(id);
    Commit(dir.path(), {SegmentRemovedRow{segment, 1}});
    ASSERT_OK(Fs::Real().RemoveAll(
        SegmentPath(JoinPath(dir.path(), "segments"), segment)));
  };
  retire({1, 1, 0});
  retire({1, 2, 1});
  const AuditReport report = Audit(dir.path());
  EXPECT_TRUE(report.ok()) << Describe(report);
  EXPECT_EQ(report.retired_payloads, 2);
  ASSERT_OK_AND_ASSIGN(const RecordedRun run,
                       RecordedRun::Open(Fs::Real(), dir.path()));
  EXPECT_THAT(run.ReadUnit(*run.FindUnit({1, 1, 0})).status(),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("payload of ppo step 1 retired")));
  EXPECT_TRUE(run.IsRetired(1, 2));
  EXPECT_FALSE(run.IsRetired(1, 3));
  // A file that is gone without a row, and one that a restart needs.
  ASSERT_OK(Fs::Real().RemoveAll(
      SegmentPath(JoinPath(dir.path(), "segments"), segment_of({1, 1, 1}))));
  EXPECT_EQ(Audit(dir.path()).of(Invariant::kNothingDeleted).violations, 1);
  retire({1, 3, 0});
  const AuditReport early = Audit(dir.path());
  EXPECT_EQ(early.of(Invariant::kNothingDeleted).violations, 2)
      << Describe(early);
}

TEST(LedgerAuditTest, AGivenUpUnitHasAPlaceholder) {
  TempDir dir;
  WriteRecordedRun(dir.path(), kSync);
  Commit(dir.path(), {UnitFailedRow{{1, 2, 0}, "its actors died"}});
  const AuditReport report = Audit(dir.path());
  EXPECT_EQ(report.of(Invariant::kFailedUnits).violations, 1);
  EXPECT_THAT(report.of(Invariant::kFailedUnits).first,
              HasSubstr("ppo step 2 unit s1.2.0: given up, but its payload"));
  Commit(dir.path(), {UnitFailedRow{{1, 9, 0}, "its actors died"}});
  EXPECT_EQ(Audit(dir.path()).of(Invariant::kFailedUnits).violations, 2);
}

// A ledger from before segments were deleted and units given up.
TEST(LedgerFormatTest, Format1IsRead) {
  TempDir dir;
  WriteRecordedRun(dir.path(), kSync);
  Tamper(dir.path(),
         "UPDATE unit SET txn=txn; DROP TABLE segment_removed;"
         "DROP TABLE unit_failed; PRAGMA user_version=1");
  const AuditReport report = Audit(dir.path());
  EXPECT_TRUE(report.ok()) << Describe(report);
  Commit(dir.path(), {UnitFailedRow{{1, 2, 0}, "why"}});
}

// A ledger of a build without numbered transactions is taken over, and says so
// until then.
TEST(LedgerFormatTest, OlderTablesAreUpgraded) {
  TempDir dir;
  WriteRecordedRun(dir.path(), kSync);
  Tamper(dir.path(),
         "UPDATE unit SET txn=txn; ALTER TABLE unit DROP COLUMN txn;"
         "ALTER TABLE batch DROP COLUMN txn;"
         "ALTER TABLE version DROP COLUMN txn;"
         "ALTER TABLE step DROP COLUMN txn; ALTER TABLE ckpt DROP COLUMN txn;"
         "ALTER TABLE event DROP COLUMN txn; DROP TABLE txn;"
         "PRAGMA user_version=0");
  EXPECT_THAT(RecordedRun::Open(Fs::Real(), dir.path()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_OK_AND_ASSIGN(auto ledger,
                       OpenSqliteLedger(JoinPath(dir.path(), "ledger.db")));
  ASSERT_OK(ledger->Commit({EventRow{4, 2.0, "kind", "text"}}));
  ASSERT_OK(ledger->Close());
  const AuditReport report = Audit(dir.path());
  EXPECT_TRUE(report.ok()) << Describe(report);
}

}  // namespace
}  // namespace cox
