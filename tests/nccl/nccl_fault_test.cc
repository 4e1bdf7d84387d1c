// Death, hang and errors of one rank end all ranks, each within its deadline,
// and a new generation goes on.

#include <signal.h>

#include <cstdio>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/clock.h"
#include "lib/base/process.h"
#include "lib/base/thread.h"
#include "tests/nccl/nccl_world.h"

namespace cox {
namespace {

using ::testing::HasSubstr;

constexpr int kEndedAborted = 10;
constexpr int kEndedLate = 11;
constexpr int kNotEnded = 12;
constexpr int kOvertime = 13;
constexpr int kAlive = 14;
constexpr int kOtherError = 15;

// What the deadline may be overrun by on a loaded machine.
constexpr absl::Duration kSlack = absl::Seconds(5);

// Sums until the group ends, as a learner does. The exit code says how.
int SumUntilTheEnd(NcclCollective& comm, absl::Duration timeout) {
  std::vector<float> data(3000, 1.0f);
  for (int i = 0; i < 50; ++i) {
    const MonoTime start = Clock::Real().Now();
    const absl::Status status = comm.AllReduceSum(std::span<float>(data));
    if (status.ok()) continue;
    std::fprintf(stderr, "rank %d: %s\n", comm.rank(),
                 status.ToString().c_str());
    if (Clock::Real().Now() - start > timeout + kSlack) return kOvertime;
    // Dead: what follows fails at once and in the same way.
    const MonoTime again = Clock::Real().Now();
    if (comm.Barrier().code() != status.code()) return kAlive;
    if (Clock::Real().Now() - again > absl::Seconds(1)) return kAlive;
    if (absl::IsAborted(status)) return kEndedAborted;
    return absl::IsDeadlineExceeded(status) ? kEndedLate : kOtherError;
  }
  return kNotEnded;
}

struct Case {
  const char* name;
  const char* fault;
  bool silent;
  bool killed;  // the rank of the fault does not end by itself
  int faulty;   // exit code of the rank of the fault
  int others;   // of all others; 0: aborted or late, whichever is first
};

constexpr Case kCases[] = {
    {"Killed", "kill", false, true, 0, kEndedAborted},
    {"KilledHalfway", "halfway", false, true, 0, kEndedAborted},
    {"KilledUnnoticed", "kill", true, true, 0, kEndedLate},
    {"Hang", "hang", false, false, kEndedLate, 0},
    {"HangUnnoticed", "hang", true, false, kEndedLate, kEndedLate},
    {"Error", "error", false, false, kEndedAborted, kEndedAborted},
    {"ErrorUnnoticed", "error", true, false, kEndedAborted, kEndedLate},
    {"AsyncError", "async", false, false, kEndedAborted, kEndedAborted},
};

struct Parameter {
  int size;
  Case fault;
};

class NcclFaultTest : public ::testing::TestWithParam<Parameter> {};

TEST_P(NcclFaultTest, EndsAllRanksAndANewGenerationGoesOn) {
  const auto& [size, fault] = GetParam();
  const int victim = size - 1;
  // Short enough to wait for, long enough for processes to meet.
  const absl::Duration timeout =
      fault.silent || fault.faulty == kEndedLate ? absl::Seconds(1) : kSoon;
  NcclWorld::Settings settings;
  settings.timeout = timeout;
  // The first call is the group's own check.
  settings.env["COX_FAKE_NCCL"] =
      absl::StrCat("rank=", victim, " call=9 fault=", fault.fault);
  if (fault.silent) settings.env["COX_FAKE_NCCL_SILENT"] = "1";
  {
    NcclWorld world(size);
    world.StartAll(settings, [timeout](NcclCollective& comm) {
      return SumUntilTheEnd(comm, timeout);
    });
    for (int rank = 0; rank < size; ++rank) {
      if (rank == victim && fault.killed) {
        world.ExpectKilled(rank);
      } else if (rank == victim) {
        world.ExpectExit(rank, fault.faulty);
      } else if (fault.others != 0) {
        world.ExpectExit(rank, fault.others);
      } else {
        const ChildExit exit = WaitChild(world.pid(rank), kSoon);
        EXPECT_TRUE(exit.exited);
        EXPECT_THAT(exit.code, ::testing::AnyOf(kEndedAborted, kEndedLate));
      }
    }
    EXPECT_EQ(world.Misuses(), "");
  }
  NcclWorld again(size);
  again.StartAll({.group = "run/g2"}, [size = size](NcclCollective& comm) {
    std::vector<float> data = RankData(comm.rank(), 3000);
    CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>(data)));
    CHILD_CHECK(data == TreeOfRanks(size, 3000));
    return 0;
  });
  again.ExpectAllExit(0);
}

std::vector<Parameter> AllCases() {
  std::vector<Parameter> all;
  // Those that end at once in all sizes; those that wait in one or two.
  for (const int size : {2, 3, 4}) {
    for (const int index : {0, 1, 5, 7}) all.push_back({size, kCases[index]});
  }
  all.push_back({3, kCases[2]});
  all.push_back({2, kCases[3]});
  all.push_back({4, kCases[3]});
  all.push_back({4, kCases[4]});
  all.push_back({3, kCases[6]});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Faults, NcclFaultTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& parameter) {
                           return absl::StrCat(parameter.param.fault.name, "Of",
                                               parameter.param.size);
                         });

TEST(NcclGroupEndTest, ASlowRankIsWaitedFor) {
  NcclWorld world(2);
  NcclWorld::Settings settings;
  settings.env["COX_FAKE_NCCL"] = "rank=1 call=3 fault=slow ms=100";
  world.StartAll(settings, [](NcclCollective& comm) {
    return SumUntilTheEnd(comm, kSoon);
  });
  world.ExpectAllExit(kNotEnded);
}

TEST(NcclGroupEndTest, AbortFromAnotherThreadEndsACallThatHangs) {
  NcclWorld world(2);
  NcclWorld::Settings settings;
  settings.env["COX_FAKE_NCCL"] = "rank=1 call=2 fault=hang";
  world.StartAll(settings, [](NcclCollective& comm) {
    Thread other("abort", [&comm] { comm.Abort(); });
    return SumUntilTheEnd(comm, kSoon);
  });
  world.ExpectAllExit(kEndedAborted);
  EXPECT_EQ(world.Misuses(), "");
}

TEST(NcclGroupEndTest, AnAsyncErrorEndsAWaitForABucket) {
  NcclWorld world(2);
  NcclWorld::Settings settings;
  settings.env["COX_FAKE_NCCL"] = "rank=1 call=2 fault=async";
  world.StartAll(settings, [](NcclCollective& comm) {
    COX_CHECK(comm.cuda().set_device(comm.device()) == CudaResult::kSuccess);
    void* device = nullptr;
    COX_CHECK(comm.cuda().malloc(&device, 4000) == CudaResult::kSuccess);
    const auto ticket = comm.Start({.out = device, .count = 1000});
    const absl::Status status =
        ticket.ok() ? comm.Wait(*ticket) : ticket.status();
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return absl::IsAborted(status) ? 0 : 1;
  });
  world.ExpectAllExit(0);
}

TEST(NcclGroupEndTest, ACudaErrorEndsTheGroupWithItsNumber) {
  NcclWorld world(2);
  NcclWorld::Settings settings;
  settings.env["COX_FAKE_CUDA_FAIL_COPY"] = "9";
  world.StartAll(settings, [](NcclCollective& comm) {
    std::vector<float> data(3000, 1.0f);
    absl::Status status;
    while (status.ok()) status = comm.AllReduceSum(std::span<float>(data));
    CHILD_CHECK(absl::IsAborted(status));
    // Whichever sees it first: its own error, or the other rank's end.
    CHILD_CHECK(status.message().find("700") != std::string::npos ||
                status.message().find("NCCL error 6") != std::string::npos);
    return 0;
  });
  world.ExpectAllExit(0);
}

// --- the meeting ---

TEST(NcclMeetingTest, ARankThatNeverComesIsADeadline) {
  NcclWorld world(2);
  world.Start(0, {.timeout = absl::Milliseconds(300)},
              [](NcclCollective&) { return 0; });
  world.ExpectExit(0, kNoGroupInTime);
}

TEST(NcclMeetingTest, ARankThatHangsInTheMeetingIsADeadlineForAll) {
  NcclWorld world(3);
  NcclWorld::Settings settings;
  settings.timeout = absl::Seconds(2);
  settings.env["COX_FAKE_NCCL"] = "rank=2 call=0 fault=hang";
  world.StartAll(settings, [](NcclCollective&) { return 0; });
  world.ExpectNobodyMeets();
  EXPECT_EQ(world.Misuses(), "");
}

TEST(NcclMeetingTest, AnErrorInTheMeetingIsReported) {
  NcclWorld world(2);
  NcclWorld::Settings settings;
  settings.timeout = absl::Seconds(2);
  settings.env["COX_FAKE_NCCL"] = "rank=1 call=0 fault=error";
  world.StartAll(settings, [](NcclCollective&) { return 0; });
  world.ExpectExit(1, kNoGroup);
  world.ExpectExit(0, kNoGroupInTime);
}

TEST(NcclMeetingTest, AStaleRankDoesNotMeetTheNewGeneration) {
  NcclWorld world(2);
  NcclWorld::Settings fresh;
  fresh.group = "run/g2";
  fresh.timeout = absl::Milliseconds(700);
  world.Start(0, fresh, [](NcclCollective&) { return 0; });
  NcclWorld::Settings stale = fresh;
  stale.group = "run/g1";
  world.Start(1, stale, [](NcclCollective&) { return 0; });
  world.ExpectExit(1, kNoGroupOther);  // told so: FAILED_PRECONDITION
  world.ExpectExit(0, kNoGroupInTime);
}

TEST(NcclMeetingTest, RanksThatCutTheirBucketsOtherwiseEndAtOnce) {
  NcclWorld world(2);
  world.Start(0, {.bucket_bytes = 4096}, [](NcclCollective&) { return 0; });
  world.Start(1, {.bucket_bytes = 8192}, [](NcclCollective&) { return 0; });
  world.ExpectAllExit(kNoGroup);
}

// --- the fake finds what the real ones would leave to chance ---

TEST(NcclFakeTest, DifferentCountsAreFound) {
  NcclWorld world(2);
  world.StartAll({.timeout = kSoon}, [](NcclCollective& comm) {
    std::vector<float> data(comm.rank() == 0 ? 10 : 11);
    const absl::Status status = comm.AllReduceSum(std::span<float>(data));
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    // Whoever is told first; the other may find its peer gone.
    return status.ok() ? 1 : 0;
  });
  world.ExpectAllExit(0);
  EXPECT_THAT(world.Misuses(), HasSubstr("different operations, counts"));
}

TEST(NcclFakeTest, MemoryFreedInFlightIsFound) {
  NcclWorld world(2);
  NcclWorld::Settings settings;
  settings.timeout = absl::Seconds(5);
  settings.env["COX_FAKE_NCCL"] = "rank=1 call=2 fault=hang";
  settings.env["COX_FAKE_NCCL_SILENT"] = "1";
  world.StartAll(settings, [](NcclCollective& comm) {
    COX_CHECK(comm.cuda().set_device(comm.device()) == CudaResult::kSuccess);
    void* device = nullptr;
    COX_CHECK(comm.cuda().malloc(&device, 4000) == CudaResult::kSuccess);
    CHILD_CHECK_OK(comm.Start({.out = device, .count = 1000}).status());
    CHILD_CHECK(comm.cuda().free(device) == CudaResult::kInvalidValue);
    comm.Abort();
    return 0;
  });
  world.ExpectAllExit(0);
  EXPECT_THAT(world.Misuses(), HasSubstr("freed while an operation uses it"));
}

TEST(NcclFakeTest, MemoryOfAnotherDeviceIsFound) {
  NcclWorld world(1);
  world.StartAll({}, [](NcclCollective& comm) {
    COX_CHECK(comm.cuda().set_device(comm.device() + 1) ==
              CudaResult::kSuccess);
    void* device = nullptr;
    COX_CHECK(comm.cuda().malloc(&device, 4000) == CudaResult::kSuccess);
    const auto ticket = comm.Start({.out = device, .count = 1000});
    return ticket.status().code() == absl::StatusCode::kInternal ? 0 : 1;
  });
  world.ExpectAllExit(0);
  EXPECT_THAT(world.Misuses(), HasSubstr("not memory of this device"));
}

TEST(NcclFakeTest, UseAfterAbortIsFound) {
  NcclWorld world(1);
  world.StartAll({}, [](NcclCollective&) {
    const auto nccl = LoadNcclApi();
    CHILD_CHECK_OK(nccl.status());
    NcclUniqueId id;
    CHILD_CHECK(nccl->get_unique_id(&id) == NcclResult::kSuccess);
    NcclComm* comm = nullptr;
    NcclConfig config;
    config.blocking = 1;
    CHILD_CHECK(nccl->comm_init_rank_config(&comm, 1, id, 0, &config) ==
                NcclResult::kSuccess);
    CHILD_CHECK(nccl->comm_abort(comm) == NcclResult::kSuccess);
    NcclResult state = NcclResult::kSuccess;
    CHILD_CHECK(nccl->comm_get_async_error(comm, &state) ==
                NcclResult::kInvalidArgument);
    return 0;
  });
  world.ExpectAllExit(0);
  EXPECT_THAT(world.Misuses(), HasSubstr("aborted or destroyed"));
}

}  // namespace
}  // namespace cox
