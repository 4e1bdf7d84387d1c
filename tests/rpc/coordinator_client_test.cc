#include "lib/rpc/coordinator_client.h"

#include <atomic>

#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/base/thread.h"
#include "lib/rpc/error_reason.h"
#include "lib/rpc/heartbeater.h"
#include "lib/rpc/operator_client.h"
#include "tests/rpc/fake_coordinator.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::FakeCoordinator;
using ::cox::testing::IsOk;
using ::cox::testing::IsOkAndHolds;
using ::cox::testing::kFakeRunId;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

CoordinatorClientOptions Options(std::string address) {
  CoordinatorClientOptions options;
  options.address = std::move(address);
  options.role = "actor";
  options.name = "actor-0";
  options.own_address = "127.0.0.1:9";
  options.patience = absl::Seconds(10);
  options.max_backoff = absl::Milliseconds(20);
  return options;
}

TEST(CoordinatorClientTest, LearnsTheRunAndIdentifiesItself) {
  FakeCoordinator coordinator;
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK_AND_ASSIGN(const auto run, client.Register());
  EXPECT_EQ(run.run_id(), kFakeRunId);
  EXPECT_EQ(coordinator.registrations()[0].address(), "127.0.0.1:9");
  EXPECT_OK(client.GetAssignment(0, absl::ZeroDuration()).status());
  const auto caller = coordinator.callers("GetAssignment").back();
  EXPECT_EQ(caller.run_id(), kFakeRunId);
  EXPECT_EQ(caller.role(), "actor");
  EXPECT_EQ(caller.epoch(), 1);
  EXPECT_EQ(caller.session().size(), 32u);
}

TEST(CoordinatorClientTest, RetriesWhatIsTransientAndNothingElse) {
  FakeCoordinator coordinator;
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  coordinator.FailNext(3, absl::UnavailableError("busy"));
  EXPECT_OK(client.GetAssignment(0, absl::ZeroDuration()).status());
  EXPECT_EQ(coordinator.callers("GetAssignment").size(), 4u);
  coordinator.FailNext(1, absl::InvalidArgumentError("stage"));
  EXPECT_THAT(client.GetAssignment(0, absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("stage")));
  EXPECT_EQ(coordinator.callers("GetAssignment").size(), 5u);
}

TEST(CoordinatorClientTest, ARestartedCoordinatorIsJoinedAgain) {
  FakeCoordinator coordinator;
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  coordinator.Restart();
  EXPECT_OK(client.GetAssignment(0, absl::ZeroDuration()).status());
  EXPECT_EQ(coordinator.registrations().size(), 2u);
  EXPECT_EQ(coordinator.registrations()[0].caller().session(),
            coordinator.registrations()[1].caller().session());
  EXPECT_EQ(client.caller().epoch, Epoch{2});
}

TEST(CoordinatorClientTest, FollowsACoordinatorToANewPort) {
  testing::TempDir dir;
  const std::string path = dir.Join("endpoints.json");
  const auto write = [&](const std::string& address) {
    return WriteFileDurably(Fs::Real(), path,
                            "{\"coordinator\": \"" + address + "\"}");
  };
  auto first = std::make_unique<FakeCoordinator>();
  ASSERT_OK(write(first->address()));
  CoordinatorClient client(Options("file:" + path));
  ASSERT_OK(client.Register().status());
  first.reset();
  FakeCoordinator second;
  ASSERT_OK(write(second.address()));
  EXPECT_OK(client.GetAssignment(0, absl::ZeroDuration()).status());
  EXPECT_EQ(second.registrations().size(), 1u);
}

TEST(CoordinatorClientTest, PatienceEnds) {
  std::string address;
  {
    FakeCoordinator gone;
    address = gone.address();
  }
  CoordinatorClientOptions options = Options(address);
  options.patience = absl::Milliseconds(50);
  CoordinatorClient client(options);
  EXPECT_THAT(client.Register(), StatusIs(absl::StatusCode::kUnavailable,
                                          HasSubstr("no answer for")));
}

TEST(CoordinatorClientTest, AStaleGenerationIsTheLearnersBusiness) {
  FakeCoordinator coordinator;
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  coordinator.FailNext(1, WithReason(absl::FailedPreconditionError("old"),
                                     ErrorReason::kStaleGeneration));
  const absl::Status status = client.CommitStep({}).status();
  EXPECT_EQ(ReasonOf(status), ErrorReason::kStaleGeneration);
  EXPECT_EQ(coordinator.registrations().size(), 1u);
}

TEST(CoordinatorClientTest, JoinSetsTheGenerationOfLaterCalls) {
  FakeCoordinator coordinator;
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  ASSERT_OK(client.JoinGroup(0, 2, "127.0.0.1:5", absl::Seconds(1)).status());
  v1::CommitStepRequest commit;
  commit.set_step(3);
  EXPECT_THAT(client.CommitStep(commit), IsOkAndHolds(false));
  EXPECT_THAT(client.CommitStep(commit), IsOkAndHolds(true));
  EXPECT_EQ(coordinator.callers("CommitStep").back().generation(), 7);
}

TEST(CoordinatorClientTest, FetchesFilesWithTheirHash) {
  FakeCoordinator coordinator;
  const std::string bytes((1 << 20) * 2 + 5, 'q');
  coordinator.files = {{"tokenizer.json", bytes}, {"empty", ""}};
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  ASSERT_OK_AND_ASSIGN(FetchedFile file, client.FetchFile("tokenizer.json"));
  EXPECT_EQ(file.bytes, bytes);
  EXPECT_EQ(file.sha256, Sha256Hex(bytes));
  ASSERT_OK_AND_ASSIGN(file, client.FetchFile("empty"));
  EXPECT_EQ(file.bytes, "");
  EXPECT_THAT(client.FetchFile("../secret"),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(coordinator.registrations().size(), 1u);
}

TEST(CoordinatorClientTest, SubmitsInChunksAndIsIdempotent) {
  FakeCoordinator coordinator;
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  SubmitUnitOptions submit;
  submit.unit = {0, 1, 2};
  submit.payload = std::string((1 << 20) + 3, 'p');
  EXPECT_THAT(client.SubmitUnit(submit),
              IsOkAndHolds(SubmitOutcome::kAccepted));
  EXPECT_THAT(client.SubmitUnit(submit),
              IsOkAndHolds(SubmitOutcome::kDuplicate));
  submit.payload.pop_back();
  EXPECT_THAT(client.SubmitUnit(submit),
              IsOkAndHolds(SubmitOutcome::kAlreadyConsumed));
}

TEST(CoordinatorClientTest, TakesVerifiedBatches) {
  FakeCoordinator coordinator;
  coordinator.batches[3] = {{UnitId{0, 3, 0}, std::string(1 << 21, 'a')},
                            {UnitId{0, 3, 1}, "b"}};
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  ASSERT_OK_AND_ASSIGN(const TakenBatch batch,
                       client.TakeBatch(0, 3, 0, absl::ZeroDuration()));
  EXPECT_EQ(batch.units, coordinator.batches[3]);
  EXPECT_EQ(batch.batch_sha256, "b47c4");
  // Alive but not complete: said at once, so that the caller can ask again.
  const absl::Status early =
      client.TakeBatch(0, 4, 0, absl::ZeroDuration()).status();
  EXPECT_THAT(early, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(ReasonOf(early), ErrorReason::kNotReady);
  EXPECT_EQ(coordinator.callers("TakeBatch").size(), 2u);
  coordinator.corrupt_batches = true;
  EXPECT_THAT(client.TakeBatch(0, 3, 0, absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("s0.3.0")));
}

TEST(CoordinatorClientTest, VersionsAndCheckpointsRoundTrip) {
  FakeCoordinator coordinator;
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  VersionSource source{.model = "policy",
                       .version = {1, 2},
                       .content_hash = std::string(64, 'c'),
                       .manifest = "m",
                       .addresses = {}};
  ASSERT_OK(client.PublishVersion(source, "127.0.0.1:77"));
  int targets = 0;
  ASSERT_OK(client.WatchVersions("policy", [&](const VersionSource& target) {
    EXPECT_EQ(target.content_hash, source.content_hash);
    EXPECT_EQ(target.addresses, std::vector<std::string>{"127.0.0.1:77"});
    return ++targets < 2;  // the stream ends after one: opened again
  }));
  EXPECT_EQ(targets, 2);
  EXPECT_OK(client.ReportHeld({source.content_hash}, "127.0.0.1:78"));
  EXPECT_THAT(client.BeginCheckpoint(1, 20),
              IsOkAndHolds(std::string("/ckpt/1/20")));
  EXPECT_THAT(client.CommitCheckpoint({}, "w", "s"),
              IsOkAndHolds(std::vector<std::string>{"/ckpt/old"}));
  ASSERT_OK_AND_ASSIGN(const auto latest, client.LatestCheckpoint(-1));
  EXPECT_EQ(latest[0].step(), 12);
}

TEST(CoordinatorClientTest, StopWaitingEndsLongPollsAndLeavesDrain) {
  FakeCoordinator coordinator;
  v1::Assignment assignment;
  coordinator.SetAssignment(assignment);
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  absl::Status waited;
  {
    Thread waiter("waiter", [&] {
      waited = client.GetAssignment(1, absl::Seconds(30)).status();
    });
    while (coordinator.callers("GetAssignment").empty()) {
      std::this_thread::yield();
    }
    client.StopWaiting();
  }
  EXPECT_THAT(waited, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(client.LeaseUnits(1, absl::Seconds(30)),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_OK(client.Drain("leaving"));
  EXPECT_TRUE(coordinator.drained().contains("actor-0"));
}

TEST(HeartbeaterTest, ReportsStateAndHearsStop) {
  FakeCoordinator coordinator;
  CoordinatorClient client(Options(coordinator.address()));
  ASSERT_OK(client.Register().status());
  Heartbeater beat(&client, absl::Milliseconds(1));
  beat.SetState("generating s0.1.2", "nobody");
  beat.SetHeld({"h"});
  coordinator.RequestStop();
  while (!beat.stop_requested()) std::this_thread::yield();
  // The beat that heard "stop" was sent after the state was set, or the next.
  while (coordinator.heartbeats().back().state() != "generating s0.1.2") {
    std::this_thread::yield();
  }
  const auto last = coordinator.heartbeats().back();
  EXPECT_EQ(last.waiting_for(), "nobody");
  EXPECT_EQ(last.held(0), "h");
  EXPECT_GT(last.rss_bytes(), 0u);
}

TEST(OperatorClientTest, WatchesAndOrders) {
  FakeCoordinator coordinator;
  OperatorClient client(
      {.address = coordinator.address(), .run_id = kFakeRunId});
  ASSERT_OK_AND_ASSIGN(const auto status, client.Status());
  EXPECT_EQ(status.run_id(), kFakeRunId);
  EXPECT_THAT(client.SetKlCoef(0.5), IsOkAndHolds(5));
  EXPECT_THAT(client.Pause(), StatusIs(absl::StatusCode::kUnimplemented));
  OperatorClient viewer({.address = coordinator.address(),
                         .run_id = kFakeRunId,
                         .role = "viewer"});
  EXPECT_THAT(viewer.SetKlCoef(0.5),
              StatusIs(absl::StatusCode::kPermissionDenied));
}

}  // namespace
}  // namespace cox
