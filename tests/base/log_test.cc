#include "lib/base/log.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

TEST(LogTest, WritesLogfmt) {
  EXPECT_EQ(FormatLogLine(LogLevel::kInfo, "actor-0", "step done",
                          {Field("step", 3), Field("loss", 0.5)}),
            "level=info role=actor-0 msg=\"step done\" step=3 loss=0.5");
}

TEST(LogTest, ValuesCannotForgeFieldsOrLines) {
  EXPECT_EQ(FormatLogLine(LogLevel::kError, "x", "a\nb",
                          {{"k", "v\" evil=1\nlevel=info\x01\\"}, {"e", ""}}),
            "level=error role=x msg=\"a\\nb\" "
            "k=\"v\\\" evil=1\\nlevel=info\\u0001\\\\\" e=\"\"");
}

TEST(LogTest, DropsBelowMinimum) {
  InitLog("r", LogLevel::kWarning);
  ::testing::internal::CaptureStderr();
  LogInfo("hidden");
  LogWarning("shown", {Field("n", 1)});
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              ::testing::MatchesRegex(
                  "ts=....-..-..T..:..:......Z level=warning role=r "
                  "msg=\"shown\" n=1\n"));
  InitLog("-");
}

}  // namespace
}  // namespace cox
