// Stages without a reward model and without reinforcement learning, as real
// processes: rejection sampling, DPO and KTO after collect, then eval.

#include <signal.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "nlohmann/json.hpp"
#include "tests/process/run_harness.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using cox::testing::TempDir;
using ::testing::HasSubstr;

std::vector<std::string> Arguments(const std::string& file,
                                   const std::string& run) {
  return {"run", file, "run_dir=" + run,
          "stages=[sft,collect,rft,dpo,kto,eval]"};
}

// The stages' rows of metrics.jsonl, in order.
std::vector<nlohmann::json> RowsOf(const std::string& run,
                                   const std::string& stage) {
  std::vector<nlohmann::json> rows;
  const std::string text =
      Fs::Real().ReadAll(JoinPath(run, "metrics.jsonl")).value_or("");
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const nlohmann::json row =
        nlohmann::json::parse(std::string(line), nullptr, false);
    if (row.is_object() && row.value("stage", "") == stage) {
      rows.push_back(row);
    }
  }
  return rows;
}

TEST(PreferenceRunTest, RunsEndsComparesAndSurvivesAKill) {
  TempDir dir;
  const std::string file =
      WriteMiniRecipe(dir.path(),
                      "rft: {batch: 8}\n"
                      "dpo: {batch: 4, epochs: 2, optimizer: {lr: 3.0e-4}}\n"
                      "kto: {batch: 8, optimizer: {lr: 3.0e-4}}\n");
  const std::string calm = JoinPath(dir.path(), "calm");
  const RunResult result = Cox(Arguments(file, calm), dir.path());
  ASSERT_EQ(result.exit_code, 0) << result.output;
  // 24 prompts, 15 % held out: 21 rows. 8 sft, 3 rft, 2 * 6 dpo, 3 kto.
  EXPECT_EQ(CommittedSteps(calm).size(), 8u + 3u + 12u + 3u);
  const std::vector<nlohmann::json> dpo = RowsOf(calm, "dpo");
  ASSERT_EQ(dpo.size(), 12u);
  EXPECT_NEAR(dpo[0].value("loss/dpo", 0.0), std::log(2.0), 1e-5);
  EXPECT_NEAR(dpo[0].value("dpo/margin", 1.0), 0.0, 1e-5);
  EXPECT_TRUE(dpo[11].contains("dpo/heldout_accuracy")) << dpo[11];
  const std::vector<nlohmann::json> kto = RowsOf(calm, "kto");
  ASSERT_EQ(kto.size(), 3u);
  EXPECT_NEAR(kto[0].value("loss/kto", 0.0), 0.5, 1e-5);
  // The table compares sft with the last policy, and there is no reward to
  // choose a best of n by.
  const nlohmann::json eval = nlohmann::json::parse(
      Fs::Real().ReadAll(JoinPath(calm, "eval.json")).value_or(""), nullptr,
      false);
  ASSERT_EQ(eval["rows"].size(), 2u);
  EXPECT_EQ(eval["rows"][0]["name"], "reference");
  EXPECT_EQ(eval["rows"][1]["name"], "policy");
  EXPECT_TRUE(eval["rows"][1]["gold"].is_object());
  EXPECT_NE(eval["rows"][1]["kl"]["mean"].get<double>(), 0.0);
  EXPECT_EQ(Cox({"ckpt", "verify", calm}, dir.path()).exit_code, 0);

  const std::string hurt = JoinPath(dir.path(), "hurt");
  RunningRun run(Arguments(file, hurt), JoinPath(dir.path(), "hurt.log"));
  ASSERT_TRUE(Eventually([&] {
    return Fs::Real().Exists(JoinPath(hurt, "ledger.db")) &&
           FindProcess(hurt, "learner-0") != 0 &&
           CommittedSteps(hurt).size() >= 8u + 3u + 2u;
  }));
  kill(FindProcess(hurt, "learner-0"), SIGKILL);
  const RunResult again = run.Wait();
  ASSERT_EQ(again.exit_code, 0) << again.output;
  EXPECT_EQ(CommittedSteps(calm), CommittedSteps(hurt));
}

}  // namespace
}  // namespace cox
