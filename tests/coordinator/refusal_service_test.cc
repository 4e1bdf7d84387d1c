#include "coordinator/refusal_service.h"

#include "gtest/gtest.h"
#include "lib/base/process.h"
#include "lib/rpc/coordinator_client.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

absl::Status Registered(const absl::Status& why) {
  CoordinatorOptions options;
  options.port = 0;
  const auto refusal = Refusal::Start(why, options);
  if (!refusal.ok()) {
    return refusal.status();
  }
  CoordinatorClientOptions client;
  client.address = absl::StrCat("127.0.0.1:", (*refusal)->port());
  client.role = "learner";
  client.name = "learner-0";
  client.own_address = "127.0.0.1:1";
  return CoordinatorClient(client).Register().status();
}

TEST(Refusal, GivesItsReasonAndExitCodeToWhoeverRegisters) {
  struct Case {
    absl::Status why;
    int exit_code;
  };
  for (const Case& one :
       {Case{absl::InvalidArgumentError("ppo.steps: 0"), kExitUsage},
        // Not taken for a session that is gone: the client would try again.
        Case{absl::NotFoundError("sft.train: no such file"), kExitUsage},
        Case{absl::DataLossError("segment 3 is short"), kExitNeedsPerson}}) {
    const absl::Status said = Registered(one.why);
    EXPECT_EQ(ExitCodeFor(said), one.exit_code) << said;
    EXPECT_NE(said.message().find(one.why.message()), absl::string_view::npos)
        << said;
  }
}

}  // namespace
}  // namespace cox
