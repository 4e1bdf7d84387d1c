#include "cli/usage_log.h"

#include "gmock/gmock.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

constexpr MonoTime kStart{int64_t{1'000'000'000}};

TEST(UsageLogTest, KeepsTheLargestOfEachAndOfAllTogether) {
  std::map<pid_t, ProcessUsage> now;
  int asked = 0;
  UsageLog log([&](pid_t pid) {
    ++asked;
    return now[pid];
  });
  const std::vector<std::pair<std::string, pid_t>> processes = {
      {"learner-0", 7}, {"actor-0", 8}, {"actor-1", 0}};
  now[7] = {.rss_bytes = 500, .private_bytes = 400};
  now[8] = {.rss_bytes = 150, .private_bytes = 100};
  log.Look(processes, kStart);
  EXPECT_EQ(asked, 2);  // not of the one that does not run
  now[7].private_bytes = 1000;
  log.Look(processes, kStart + absl::Milliseconds(500));
  EXPECT_EQ(asked, 2);  // too soon
  now[7] = {.rss_bytes = 350, .private_bytes = 300};
  now[8] = {.rss_bytes = 190, .private_bytes = 180};
  log.Look(processes, kStart + absl::Seconds(1));
  const auto json = nlohmann::json::parse(log.Json());
  EXPECT_EQ(json["schema"], "cox.usage/1");
  EXPECT_EQ(json["peak_private_bytes"], 500);
  EXPECT_EQ(json["processes"].size(), 2u);
  EXPECT_EQ(json["processes"]["learner-0"]["private_bytes"], 400);
  EXPECT_EQ(json["processes"]["learner-0"]["resident_bytes"], 500);
  EXPECT_EQ(json["processes"]["actor-0"]["private_bytes"], 180);
}

TEST(UsageLogTest, ReadsThisProcess) {
  const ProcessUsage usage = UsageOf(getpid());
  EXPECT_GT(usage.private_bytes, 0);
  EXPECT_GT(usage.rss_bytes, usage.private_bytes);
}

}  // namespace
}  // namespace cox
