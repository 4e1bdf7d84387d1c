// A whole run under mutual TLS: every process with a certificate of its role,
// renewed while it runs.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "tests/process/run_harness.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using cox::testing::TempDir;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TEST(TlsRunTest, SameWeightsAsWithoutAndNobodyElseGetsIn) {
  TempDir dir;
  const std::string file = WriteTableTask(dir.path());
  const std::string steps = "ppo.steps=40";
  const std::string certs = dir.Join("certs");
  const std::string foreign = dir.Join("foreign");
  // The run's name stands in the certificates.
  for (const auto& [folder, run] :
       {std::pair{certs, "table"}, std::pair{foreign, "another"}}) {
    const RunResult init =
        Cox({"certs", "init", folder, "--run", run}, dir.path());
    ASSERT_EQ(init.exit_code, 0) << init.output;
  }
  const std::string plain = dir.Join("plain");
  const RunResult undisturbed =
      Cox({"run", file, steps, "run_dir=" + plain}, dir.path());
  ASSERT_EQ(undisturbed.exit_code, 0) << undisturbed.output;

  const std::string run = dir.Join("run");
  RunningRun running({"run", file, "--tls", certs, steps, "run_dir=" + run},
                     dir.Join("run.log"));
  ASSERT_TRUE(Eventually([&] {
    return Fs::Real().Exists(JoinPath(run, "ledger.db")) &&
           FindProcess(run, "learner-0") != 0 &&
           CommittedSteps(run).size() >= 2;
  }));
  // Held, so that it does not end while it is asked about.
  const std::string own = JoinPath(certs, "operator");
  const RunResult pause = Cox({"pause", run, "--tls", own}, dir.path());
  ASSERT_EQ(pause.exit_code, 0) << pause.output;
  const auto status = [&](const std::string& tls) {
    std::vector<std::string> arguments = {"status", run};
    if (!tls.empty()) arguments.insert(arguments.end(), {"--tls", tls});
    return Cox(arguments, dir.path()).exit_code;
  };
  EXPECT_EQ(status(own), 0);
  EXPECT_EQ(status(JoinPath(certs, "viewer")), 0);
  EXPECT_NE(status(""), 0);
  EXPECT_NE(status(JoinPath(foreign, "operator")), 0);
  const RunResult stop =
      Cox({"stop", run, "--tls", JoinPath(certs, "viewer")}, dir.path());
  EXPECT_NE(stop.exit_code, 0);
  EXPECT_THAT(stop.output, HasSubstr("may not call ControlService.Stop"));
  const RunResult renewed = Cox({"certs", "renew", certs}, dir.path());
  EXPECT_EQ(renewed.exit_code, 0) << renewed.output;
  const RunResult resume = Cox({"resume", run, "--tls", own}, dir.path());
  ASSERT_EQ(resume.exit_code, 0) << resume.output;
  const RunResult end = running.Wait();
  EXPECT_EQ(end.exit_code, 0) << end.output;
  EXPECT_THAT(CommittedSteps(run), Not(IsEmpty()));
  EXPECT_EQ(CommittedSteps(run), CommittedSteps(plain));
}

}  // namespace
}  // namespace cox
