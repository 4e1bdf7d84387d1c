// Drives the cox-ops binary over pipes (docs/ops-protocol.md §1, §2).

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

// A running cox-ops. Reads block until the answer; CTest's timeout is the
// deadline.
class OpsProcess {
 public:
  OpsProcess() {
    signal(SIGPIPE, SIG_IGN);
    int in[2];
    int out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) return;
    const char* dir = getenv("COX_BIN_DIR");
    const std::string path =
        std::string(dir == nullptr ? "." : dir) + "/cox-ops";
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      execl(path.c_str(), path.c_str(), nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_ = fdopen(in[1], "w");
    from_ = fdopen(out[0], "r");
  }
  ~OpsProcess() { Finish(); }

  // The answer line to one request line; "" if the process is gone.
  std::string Ask(const std::string& line) {
    fwrite(line.data(), 1, line.size(), to_);
    fputc('\n', to_);
    fflush(to_);
    std::string answer;
    for (int c = fgetc(from_); c != EOF && c != '\n'; c = fgetc(from_)) {
      answer.push_back(static_cast<char>(c));
    }
    return answer;
  }
  Json AskJson(const std::string& line) {
    return Json::parse(Ask(line), nullptr, /*allow_exceptions=*/false);
  }
  Json Call(const std::string& op, const Json& args) {
    return AskJson(Json{{"op", op}, {"args", args}}.dump());
  }
  // Closes stdin and returns the exit status, -1 if it did not exit.
  int Finish() {
    if (to_ == nullptr) return status_;
    fclose(to_);
    to_ = nullptr;
    int raw = 0;
    waitpid(pid_, &raw, 0);
    fclose(from_);
    status_ = WIFEXITED(raw) ? WEXITSTATUS(raw) : -1;
    return status_;
  }

 private:
  pid_t pid_ = -1;
  FILE* to_ = nullptr;
  FILE* from_ = nullptr;
  int status_ = -1;
};

void ExpectError(const Json& answer, const std::string& code,
                 const std::string& message) {
  ASSERT_TRUE(answer.is_object()) << answer;
  EXPECT_EQ(answer.value("ok", true), false) << answer;
  EXPECT_EQ(answer["error"].value("code", ""), code) << answer;
  EXPECT_THAT(answer["error"].value("message", ""), HasSubstr(message));
}

const Json kGae = {{"rewards", {{0.1, 1}}}, {"values", {{0.5, 0.25}}}};

TEST(OpsProtocolTest, AnswersBuiltInsAndEchoesAnyId) {
  OpsProcess ops;
  EXPECT_EQ(ops.AskJson(R"({"op":"version","id":{"a":[1,null]}})"),
            Json::parse(
                R"({"ok":true,"id":{"a":[1,null]},"result":{"protocol":1}})"));
  const Json names = ops.Call("ops", Json::object())["result"]["ops"];
  for (const char* name : {"gae", "policy_loss", "sample", "whiten"}) {
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end());
  }
  EXPECT_FALSE(ops.Call("version", Json::object()).contains("id"));
}

TEST(OpsProtocolTest, EndOfInputExitsWithZero) {
  OpsProcess ops;
  ops.Call("version", Json::object());
  EXPECT_EQ(ops.Finish(), 0);
}

TEST(OpsProtocolTest, SurvivesEveryMalformedLine) {
  OpsProcess ops;
  const std::string lines[] = {
      "",
      "{",
      "nan",
      "[]",
      "\"text\"",
      std::string("\0\x01\x7f", 3),
      "\xff\xfe",
      R"({"op":"gae","args":{"rewards":[[NaN]]}})",
      R"({"op":"gae","args":{"rewards":[[1e999]]}})",
      std::string(200000, '['),
      std::string(100000, '{'),
      R"({"op":5})",
      R"({"op":"gae","args":[1]})",
      R"({"op":"gae","args":{"rewards":"\ud800"}})",
  };
  for (const std::string& line : lines) {
    ExpectError(ops.AskJson(line), "INVALID_ARGUMENT", "");
  }
  EXPECT_TRUE(ops.Call("gae", kGae)["ok"]);
}

TEST(OpsProtocolTest, DepthLimitDoesNotCountBracketsInStrings) {
  OpsProcess ops;
  const std::string id(1000, '[');
  EXPECT_EQ(ops.AskJson(R"({"op":"version","id":")" + id + "\\\"[\"}")["id"],
            id + "\"[");
}

TEST(OpsProtocolTest, ErrorsNameTheArgument) {
  OpsProcess ops;
  const auto with = [](const char* key, Json value) {
    Json args = kGae;
    args[key] = std::move(value);
    return args;
  };
  const std::pair<Json, const char*> cases[] = {
      {with("surplus", 1), "surplus"},
      {with("rewards", nullptr), "rewards"},
      {with("rewards", {{1}, {1, 2}}), "rewards"},
      {with("rewards", {{"nan", 1}}), "rewards"},
      {with("rewards", {{"NaN", 1}}), "rewards"},
      {with("rewards", {{true, 1}}), "rewards"},
      {with("values", {{1}}), "values"},
      {with("mask", {{1, 2}}), "mask"},
      {with("gamma", 1.5), "gamma"},
      {with("gamma", "x"), "gamma"},
      {with("lambda", -0.5), "lambda"},
      {with("dtype", "float16"), "dtype"},
  };
  for (const auto& [args, name] : cases) {
    ExpectError(ops.Call("gae", args), "INVALID_ARGUMENT", name);
  }
  ExpectError(ops.Call("no_such_op", Json::object()), "UNIMPLEMENTED",
              "no_such_op");
}

TEST(OpsProtocolTest, ArgumentsThatAKindIgnoresAreCheckedToo) {
  OpsProcess ops;
  Json args = {{"kind", "fixed"}, {"beta", 0.1}, {"stream", {{8, 4}}}};
  EXPECT_EQ(ops.Call("kl_controller", args)["result"]["beta"], Json({0.1}));
  args["target"] = "x";
  ExpectError(ops.Call("kl_controller", args), "INVALID_ARGUMENT", "target");
}

TEST(OpsProtocolTest, PoisonUnderMaskIsIgnoredAndZero) {
  OpsProcess ops;
  const Json answer = ops.Call("gae", {{"rewards", {{1, "nan", 2}}},
                                       {"values", {{0, "-inf", 0}}},
                                       {"mask", {{1, 0, 1}}},
                                       {"lambda", 1}});
  EXPECT_EQ(answer["result"]["advantages"], Json::parse("[[3.0,0.0,2.0]]"));
}

TEST(OpsProtocolTest, NumbersRoundTripInBothTypes) {
  OpsProcess ops;
  Json args = {{"theta0", {0.1}}, {"thetas", {{0.1}}}, {"decay", 1}};
  EXPECT_EQ(ops.Call("ema", args)["result"]["shadow"][0][0].get<double>(), 0.1);
  args["dtype"] = "float32";
  const std::string answer =
      ops.Ask(Json{{"op", "ema"}, {"args", args}}.dump());
  EXPECT_THAT(answer, HasSubstr("0.100000001]"));
  // inf and nan as strings.
  const Json clip = ops.Call(
      "grad_clip", {{"grads", {{1, "inf"}}}, {"max_norm", 1}})["result"];
  EXPECT_EQ(clip["norm"], "inf");
  EXPECT_EQ(clip["grads"][0][1], "inf");
  EXPECT_EQ(clip["skipped"], true);
}

TEST(OpsProtocolTest, EmptyDimensionsAreTensors) {
  OpsProcess ops;
  for (const char* list : {"[]", "[[],[]]"}) {
    const Json empty = Json::parse(list);
    const Json answer = ops.Call("policy_loss", {{"kind", "ppo"},
                                                 {"logprob", empty},
                                                 {"old_logprob", empty},
                                                 {"advantages", empty},
                                                 {"world", 2}});
    ASSERT_TRUE(answer["ok"]) << answer;
    EXPECT_EQ(answer["result"]["loss"], 0.0);
    EXPECT_EQ(answer["result"]["grad"], empty);
  }
}

TEST(OpsProtocolTest, RanksAndMicroBatchesChangeNothing) {
  OpsProcess ops;
  Json args = {{"kind", "ppo"},
               {"logprob", {{-1, -2}, {-3, -1}, {-2, -2}}},
               {"old_logprob", {{-1.1, -2}, {-3, -1.4}, {-2, -1}}},
               {"advantages", {{1, -1}, {0.5, 0.5}, {-2, 1}}},
               {"mask", {{1, 1}, {0, 1}, {1, 0}}}};
  const Json plain = ops.Call("policy_loss", args)["result"];
  args["world"] = 3;
  args["rank_of_row"] = {2, 0, 2};
  args["micro_batch"] = 1;
  const Json split = ops.Call("policy_loss", args)["result"];
  EXPECT_NEAR(split["loss"].get<double>(), plain["loss"].get<double>(), 1e-12);
  EXPECT_EQ(split["grad"], plain["grad"]);
  args["rank_of_row"] = {2, 0, 3};
  ExpectError(ops.Call("policy_loss", args), "INVALID_ARGUMENT", "rank_of_row");
}

TEST(OpsProtocolTest, ErrorOnOneRankReleasesItsPeers) {
  OpsProcess ops;
  ExpectError(ops.Call("policy_loss", {{"kind", "ppo"},
                                       {"logprob", {{-1}, {-1}}},
                                       {"old_logprob", {{-1}, {-1}}},
                                       {"advantages", {{1}, {"nan"}}},
                                       {"world", 2},
                                       {"rank_of_row", {0, 1}}}),
              "INVALID_ARGUMENT", "advantages");
}

TEST(OpsProtocolTest, NullSwitchesValueClippingOff) {
  OpsProcess ops;
  Json args = {{"values", {{1}}}, {"old_values", {{0}}}, {"returns", {{1}}}};
  // Clipped: V_clip = .2, ½(.2 − 1)² = .32; plain: 0.
  EXPECT_NEAR(ops.Call("value_loss", args)["result"]["loss"].get<double>(),
              0.32, 1e-12);
  args["clip"] = nullptr;
  EXPECT_EQ(ops.Call("value_loss", args)["result"]["loss"], 0.0);
}

}  // namespace
}  // namespace cox
