// Publisher and actors' side of roles.weight_transport nccl over real gRPC and
// the fake NCCL, each a process: who gets the version how. gRPC lives in the
// children only, so that no fork copies its threads.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/comm/weight_group_book.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/server.h"
#include "lib/rpc/weight_fetcher.h"
#include "lib/rpc/weight_groups.h"
#include "lib/rpc/weight_server.h"
#include "tests/nccl/nccl_world.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

// Exit codes of a member that got the version.
constexpr int kOverNccl = 30;
constexpr int kOverGrpc = 31;

// Three buckets of 4 MiB.
std::shared_ptr<const Snapshot> MakeWeights() {
  const Manifest layout =
      LayOut("policy", "{}", DType::kF32, {{"a", {2'500'001}}, {"b", {3'000}}});
  std::vector<float> values(layout.arena_bytes / 4);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i % 997);
  }
  return *SnapshotFromFloats(layout, values);
}

// What the publisher counted.
struct Counts {
  uint64_t sent = 0;
  uint64_t failed = 0;
};

class NcclWeightsRpcTest : public ::testing::Test {
 protected:
  using Env = std::map<std::string, std::string>;
  using Member = std::function<int(const VersionSource&)>;

  ~NcclWeightsRpcTest() override {
    for (const pid_t pid : pids_) {
      kill(pid, SIGKILL);
      WaitChild(pid, kSoon);
    }
  }

  pid_t Fork(const Env& env, const std::function<int()>& body) {
    const pid_t pid = fork();
    COX_CHECK(pid >= 0);
    if (pid == 0) {
      InitProcess(/*die_with_parent=*/true);
      UseFakes();
      setenv("COX_FAKE_MISUSE", dir_.Join("misuse").c_str(), 1);
      for (const auto& [name, value] : env) {
        setenv(name.c_str(), value.c_str(), 1);
      }
      _exit(body());
    }
    pids_.push_back(pid);
    return pid;
  }

  // A publisher of generation 3 that serves until Finish(). Without `groups`
  // it is one of a run over gRPC.
  void Publish(const Env& env, absl::Duration timeout, bool groups = true) {
    int up[2];
    COX_CHECK(pipe(up) == 0 && pipe(leave_) == 0 && pipe(counts_) == 0);
    publisher_ = Fork(env, [&] {
      close(leave_[1]);
      SnapshotStore store;
      store.Put(weights_);
      WeightServiceImpl service(
          &store,
          {.run_id = [] { return std::string("run"); }, .on_chunk = nullptr});
      WeightGroups weight_groups(&store);
      const auto server =
          RpcServer::Start({.services = {&service, &weight_groups}});
      CHILD_CHECK_OK(server.status());
      if (groups) {
        // Long enough for members that start slowly: they count on each other.
        weight_groups.Open({.run_id = "run",
                            .generation = 3,
                            .timeout = timeout,
                            .window = absl::Seconds(1)});
      }
      const std::string address = (*server)->address();
      CHILD_CHECK(write(up[1], address.data(), address.size()) ==
                  static_cast<ssize_t>(address.size()));
      close(up[1]);
      char byte;
      CHILD_CHECK(read(leave_[0], &byte, 1) == 0);
      weight_groups.Close();
      (*server)->Shutdown(absl::Seconds(1));
      const Counts counts = {weight_groups.groups_sent(),
                             weight_groups.groups_failed()};
      CHILD_CHECK(write(counts_[1], &counts, sizeof(counts)) ==
                  static_cast<ssize_t>(sizeof(counts)));
      return 0;
    });
    close(up[1]);
    char address[100];
    const ssize_t got = read(up[0], address, sizeof(address));
    ASSERT_GT(got, 0) << "no publisher";
    close(up[0]);
    source_ = {.model = "policy",
               .version = {0, 1},
               .content_hash = weights_->content_hash,
               .manifest = weights_->manifest.CanonicalText(),
               .addresses = {std::string(address, static_cast<size_t>(got))}};
    source_.group = {.address = source_.addresses[0], .generation = 3};
  }

  Counts Finish() {
    close(leave_[1]);
    const ChildExit exit = WaitChild(publisher_, kSoon);
    EXPECT_TRUE(exit.exited && exit.code == 0 && exit.signal == 0);
    Counts counts;
    EXPECT_EQ(read(counts_[0], &counts, sizeof(counts)),
              static_cast<ssize_t>(sizeof(counts)));
    for (const int fd : {leave_[0], counts_[0], counts_[1]}) close(fd);
    EXPECT_EQ(Fs::Real().ReadAll(dir_.Join("misuse")).value_or(""), "");
    return counts;
  }

  // What an actor does.
  int Fetch(const VersionSource& source, absl::Duration timeout) const {
    GroupFetchOptions options;
    options.caller.run_id = "run";
    options.timeout = timeout;
    auto got = FetchOverGroup(source, options);
    int code = kOverNccl;
    if (!got.ok()) {
      std::fprintf(stderr, "%s\n", got.status().ToString().c_str());
      FetchOptions fetch;
      fetch.caller.run_id = "run";
      got = FetchSnapshot(source, fetch);
      code = kOverGrpc;
    }
    CHILD_CHECK_OK(got.status());
    CHILD_CHECK((*got)->content_hash == weights_->content_hash);
    CHILD_CHECK(
        std::ranges::equal((*got)->arena->bytes(), weights_->arena->bytes()));
    return code;
  }

  // Exit codes of `count` actors that expect each other; -SIGNAL of one that
  // was killed.
  std::vector<int> Actors(int count, const Env& env, absl::Duration timeout) {
    source_.group.actors = count;
    std::vector<pid_t> pids;
    for (int i = 0; i < count; ++i) {
      pids.push_back(
          Fork(env, [this, timeout] { return Fetch(source_, timeout); }));
    }
    std::vector<int> codes;
    for (const pid_t pid : pids) {
      const ChildExit exit = WaitChild(pid, kSoon);
      EXPECT_TRUE(exit.exited) << "an actor hangs";
      codes.push_back(exit.signal != 0 ? -exit.signal : exit.code);
    }
    std::ranges::sort(codes);
    return codes;
  }

  const std::shared_ptr<const Snapshot> weights_ = MakeWeights();
  testing::TempDir dir_;
  VersionSource source_;
  int leave_[2];
  int counts_[2];
  pid_t publisher_ = 0;
  std::vector<pid_t> pids_;
};

using ::testing::ElementsAre;

TEST_F(NcclWeightsRpcTest, ThoseWhoAskTogetherAreOneGroup) {
  Publish({}, kSoon);
  EXPECT_THAT(Actors(3, {}, kSoon),
              ElementsAre(kOverNccl, kOverNccl, kOverNccl));
  // Alone, and after the others: the next group.
  EXPECT_THAT(Actors(1, {}, kSoon), ElementsAre(kOverNccl));
  const Counts counts = Finish();
  EXPECT_EQ(counts.sent, 2u);
  EXPECT_EQ(counts.failed, 0u);
}

TEST_F(NcclWeightsRpcTest, TheOthersOfADeadMemberFetchOverGrpc) {
  const Env env = {{"COX_FAKE_NCCL", "rank=2 call=3 fault=halfway"}};
  Publish(env, kSoon);
  EXPECT_THAT(Actors(3, env, kSoon),
              ElementsAre(-SIGKILL, kOverGrpc, kOverGrpc));
  // The publisher goes on with whoever comes next.
  EXPECT_THAT(Actors(1, {}, kSoon), ElementsAre(kOverNccl));
  const Counts counts = Finish();
  EXPECT_EQ(counts.sent, 1u);
  EXPECT_EQ(counts.failed, 1u);
}

TEST_F(NcclWeightsRpcTest, AHangingMemberCostsTheDeadline) {
  const Env env = {{"COX_FAKE_NCCL", "rank=1 call=3 fault=hang"},
                   {"COX_FAKE_NCCL_SILENT", "1"}};
  Publish(env, absl::Seconds(1));
  EXPECT_THAT(Actors(2, env, absl::Seconds(1)),
              ElementsAre(kOverGrpc, kOverGrpc));
  EXPECT_EQ(Finish().failed, 1u);
}

TEST_F(NcclWeightsRpcTest, AMemberThatFailsLaterEndsTheGroup) {
  const Env env = {{"COX_FAKE_NCCL", "rank=2 call=3 fault=async"}};
  Publish(env, kSoon);
  EXPECT_THAT(Actors(2, env, kSoon), ElementsAre(kOverGrpc, kOverGrpc));
  EXPECT_EQ(Finish().failed, 1u);
}

// It read its source before the learners met again.
TEST_F(NcclWeightsRpcTest, AMemberOfAnOlderGenerationIsRefused) {
  Publish({}, kSoon);
  source_.group.generation = 2;
  EXPECT_THAT(Actors(1, {}, kSoon), ElementsAre(kOverGrpc));
  const Counts counts = Finish();
  EXPECT_EQ(counts.sent + counts.failed, 0u);
}

TEST_F(NcclWeightsRpcTest, APublisherWithoutGroupsRefuses) {
  Publish({}, kSoon, /*groups=*/false);
  EXPECT_THAT(Actors(1, {}, kSoon), ElementsAre(kOverGrpc));
}

// A fabric that does not work must not cost every version its deadline.
TEST_F(NcclWeightsRpcTest, AfterTwoFailuresInARowNoGroupIsFormedForAWhile) {
  const absl::Duration timeout = absl::Milliseconds(300);
  Publish({}, timeout);
  source_.group.actors = 1;
  const pid_t pid = Fork({}, [&] {
    const auto channel = MakeChannel(source_.group.address);
    CHILD_CHECK_OK(channel.status());
    const auto stub = v1::WeightGroupService::NewStub(*channel);
    for (int i = 0; i < 2; ++i) {  // asks, and does not come
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() +
                           std::chrono::seconds(20));
      v1::JoinWeightGroupRequest request;
      request.mutable_caller()->set_run_id("run");
      request.set_content_hash(source_.content_hash);
      request.set_generation(3);
      request.set_actors(1);
      v1::JoinWeightGroupResponse response;
      CHILD_CHECK(stub->Join(&context, request, &response).ok());
      CHILD_CHECK(response.rank() == 1 && response.ranks() == 2);
    }
    GroupFetchOptions options;
    options.caller.run_id = "run";
    const absl::Status status = FetchOverGroup(source_, options).status();
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    CHILD_CHECK(absl::IsUnavailable(status));
    CHILD_CHECK(status.message().find("the last 2 failed") !=
                std::string::npos);
    return Fetch(source_, timeout);
  });
  const ChildExit exit = WaitChild(pid, kSoon);
  EXPECT_EQ(exit.code, kOverGrpc);
  EXPECT_EQ(Finish().failed, 2u);
}

MonoTime At(int ms) { return MonoTime{} + absl::Milliseconds(ms); }

TEST(NcclWeightsBookTest, AGroupClosesWhenAllCameOrItsTimeIsOver) {
  WeightGroupBook book(absl::Milliseconds(250));
  EXPECT_FALSE(book.NextDue().has_value());
  book.Join(At(0), "v1", 1, 3);
  book.Join(At(10), "v1", 2, 3);
  EXPECT_FALSE(book.Take(At(10)).has_value());
  EXPECT_EQ(book.NextDue(), At(250));
  // Another version is another group.
  book.Join(At(20), "v2", 3, 1);
  auto group = book.Take(At(20));
  ASSERT_TRUE(group.has_value());
  EXPECT_EQ(group->content_hash, "v2");
  EXPECT_THAT(group->members, ElementsAre(3u));
  book.Join(At(30), "v1", 4, 3);
  group = book.Take(At(30));
  ASSERT_TRUE(group.has_value());
  EXPECT_THAT(group->members, ElementsAre(1u, 2u, 4u));
  // The next of the same version starts anew.
  book.Join(At(40), "v1", 5, 3);
  EXPECT_FALSE(book.Take(At(289)).has_value());
  group = book.Take(At(290));
  ASSERT_TRUE(group.has_value());
  EXPECT_THAT(group->members, ElementsAre(5u));
  EXPECT_FALSE(book.Take(At(1000)).has_value());
}

TEST(NcclWeightsBookTest, WhoLeavesIsNotInAGroup) {
  WeightGroupBook book(absl::Milliseconds(250));
  book.Join(At(0), "v1", 1, 2);
  EXPECT_TRUE(book.Leave(1));
  EXPECT_FALSE(book.Leave(1));
  EXPECT_FALSE(book.NextDue().has_value());
  book.Join(At(0), "v1", 2, 2);
  book.Join(At(1), "v1", 3, 2);
  EXPECT_TRUE(book.Leave(3));
  EXPECT_FALSE(book.Take(At(2)).has_value());
}

TEST(NcclWeightsBookTest, AnUnknownNumberWaitsForTheWindow) {
  WeightGroupBook book(absl::Milliseconds(250));
  book.Join(At(0), "v1", 1, 0);
  EXPECT_FALSE(book.Take(At(249)).has_value());
  EXPECT_TRUE(book.Take(At(250)).has_value());
}

}  // namespace
}  // namespace cox
