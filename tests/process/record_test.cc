// What a run recorded proves it: `cox ledger verify`, `why`, `replay` and
// `explain --check` on runs of real processes, and on copies that somebody
// changed.

#include <sqlite3.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "tests/process/run_harness.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::TempDir;
using ::testing::HasSubstr;

std::string Copy(const std::string& run, const std::string& to) {
  std::filesystem::copy(run, to, std::filesystem::copy_options::recursive);
  return to;
}

void Tamper(const std::string& run, const std::string& sql) {
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(JoinPath(run, "ledger.db").c_str(), &db), SQLITE_OK);
  EXPECT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK)
      << sqlite3_errmsg(db);
  EXPECT_EQ(sqlite3_total_changes(db), 1) << sql;
  sqlite3_close(db);
}

// Of the payload that `cox why` names: "000001.seg, bytes 120+340".
size_t PayloadOffset(const std::string& why) {
  static constexpr std::string_view kBefore = "000001.seg, bytes ";
  const size_t at = why.find(kBefore);
  EXPECT_NE(at, std::string::npos) << why;
  return std::strtoull(why.c_str() + at + kBefore.size(), nullptr, 10);
}

// The check that every run must pass.
void ExpectProven(const std::string& run, const std::string& scratch) {
  const RunResult verify = Cox({"ledger", "verify", run}, scratch);
  EXPECT_EQ(verify.exit_code, 0) << verify.output;
  const RunResult replay =
      Cox({"replay", run, "--step", "1", "--to", "12"}, scratch);
  EXPECT_EQ(replay.exit_code, 0) << replay.output;
  EXPECT_THAT(replay.output,
              HasSubstr("step 12: weights' hash equals the ledger"));
  const RunResult metrics = Cox({"explain", "--check", run}, scratch);
  EXPECT_EQ(metrics.exit_code, 0) << metrics.output;
  EXPECT_THAT(metrics.output, HasSubstr("all equal to the record"));
}

TEST(RecordTest, LiveAndFinishedRunOfFixedLagIsProven) {
  TempDir dir;
  const std::string file =
      WriteTableTask(dir.path(), "schedule: {mode: fixed_lag, lag: 1}\n");
  const std::string run = JoinPath(dir.path(), "run");
  RunningRun running({"run", file, "run_dir=" + run},
                     JoinPath(dir.path(), "run.log"));
  ASSERT_TRUE(Eventually([&run] {
    return Fs::Real().Exists(JoinPath(run, "ledger.db")) &&
           FindProcess(run, "learner-0") != 0 &&
           CommittedSteps(run).size() >= 2;
  }));
  const RunResult live = Cox({"ledger", "verify", run}, dir.path());
  EXPECT_EQ(live.exit_code, 0) << live.output;
  const RunResult result = running.Wait();
  ASSERT_EQ(result.exit_code, 0) << result.output;
  ExpectProven(run, dir.path());
  // From a checkpoint, with another number of ranks: the same bits.
  const RunResult one_rank =
      Cox({"replay", run, "--step", "11", "--ranks", "1"}, dir.path());
  EXPECT_EQ(one_rank.exit_code, 0) << one_rank.output;
  EXPECT_THAT(one_rank.output, HasSubstr("step_000009.g1, 1 rank"));
}

TEST(RecordTest, StreamingIsProvenAndEveryChangeIsFound) {
  TempDir dir;
  const std::string file =
      WriteTableTask(dir.path(), "schedule: {mode: streaming, eta: 2}\n");
  const std::string run = JoinPath(dir.path(), "run");
  const RunResult result = Cox({"run", file, "run_dir=" + run}, dir.path());
  ASSERT_EQ(result.exit_code, 0) << result.output;
  ExpectProven(run, dir.path());

  const RunResult why = Cox({"why", run, "--sample", "s0.1.2/3.0"}, dir.path());
  EXPECT_EQ(why.exit_code, 0) << why.output;
  for (const char* fact :
       {"prompt       3", "weights      s0v0", "reward", "table", "KL",
        "trained in   step", "checkpoint", "000001.seg, bytes"}) {
    EXPECT_THAT(why.output, HasSubstr(fact));
  }
  EXPECT_EQ(Cox({"why", run, "--sample", "s0.1.2/99.0"}, dir.path()).exit_code,
            2);

  const std::string flipped = Copy(run, JoinPath(dir.path(), "flipped"));
  const std::string segment = JoinPath(flipped, "segments/000001.seg");
  std::string bytes = Fs::Real().ReadAll(segment).value_or("");
  ASSERT_FALSE(bytes.empty());
  // Inside a payload: between payloads stand seals, which no row needs.
  bytes[PayloadOffset(why.output)] ^= 1;
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), segment, bytes).ok());
  const RunResult verify = Cox({"ledger", "verify", flipped}, dir.path());
  EXPECT_EQ(verify.exit_code, 1) << verify.output;
  EXPECT_THAT(verify.output, HasSubstr("BAD   payload-hash"));
  EXPECT_THAT(verify.output, HasSubstr(" unit s0."));

  const std::string file_changed = Copy(run, JoinPath(dir.path(), "file"));
  const std::string state = JoinPath(
      file_changed, "checkpoints/ppo/step_000012.g1/trainer/state.bin");
  bytes = Fs::Real().ReadAll(state).value_or("");
  ASSERT_FALSE(bytes.empty());
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), state, bytes).ok());
  const RunResult file_verify =
      Cox({"ledger", "verify", file_changed}, dir.path());
  EXPECT_EQ(file_verify.exit_code, 1) << file_verify.output;
  EXPECT_THAT(file_verify.output, HasSubstr("trainer/state.bin"));

  const std::string weights = Copy(run, JoinPath(dir.path(), "weights"));
  Tamper(weights, "UPDATE step SET weight_hash='" + std::string(64, 'a') +
                      "' WHERE step=12");
  const RunResult diverges =
      Cox({"replay", weights, "--step", "12"}, dir.path());
  EXPECT_EQ(diverges.exit_code, 1) << diverges.output;
  EXPECT_THAT(diverges.output, HasSubstr("DIVERGES at step 12: weights' hash"));

  const std::string metric = Copy(run, JoinPath(dir.path(), "metric"));
  Tamper(metric,
         "UPDATE step SET metrics=replace(metrics,'[\"objective/kl\",',"
         "'[\"objective/kl\",1') WHERE step=7");
  const RunResult kl =
      Cox({"explain", "objective/kl", "--check", metric}, dir.path());
  EXPECT_EQ(kl.exit_code, 1) << kl.output;
  EXPECT_THAT(kl.output, HasSubstr("ppo step 7: the ledger has 1"));
  const RunResult length =
      Cox({"explain", "rollout/length", "--check", metric}, dir.path());
  EXPECT_EQ(length.exit_code, 0) << length.output;
  const RunResult first = Cox({"replay", metric, "--step", "7"}, dir.path());
  EXPECT_EQ(first.exit_code, 1) << first.output;
  EXPECT_THAT(first.output, HasSubstr("DIVERGES at step 7: objective/kl"));
}

TEST(RecordTest, WhatIsNotThereIsSaid) {
  TempDir dir;
  const RunResult nothing = Cox({"ledger", "verify", dir.path()}, dir.path());
  EXPECT_EQ(nothing.exit_code, 2);
  EXPECT_THAT(nothing.output, HasSubstr("ledger.db"));
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), dir.Join("ledger.db"),
                               std::string(8192, 'x'))
                  .ok());
  const RunResult damaged = Cox({"ledger", "verify", dir.path()}, dir.path());
  EXPECT_EQ(damaged.exit_code, 1) << damaged.output;
}

}  // namespace
}  // namespace cox
