#include "tests/process/run_harness.h"

#include <sqlite3.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"

namespace cox {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  EXPECT_NE(value, nullptr) << name << " is set by ctest";
  return value == nullptr ? "" : value;
}

void Pause() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

std::map<std::string, std::string> Query(const std::string& run_dir,
                                         const char* sql) {
  std::map<std::string, std::string> rows;
  sqlite3* db = nullptr;
  const std::string path = JoinPath(run_dir, "ledger.db");
  if (sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READONLY, nullptr) !=
      SQLITE_OK) {
    ADD_FAILURE() << "cannot open " << path;
    sqlite3_close(db);
    return rows;
  }
  sqlite3_busy_timeout(db, 5000);
  char* error = nullptr;
  const auto collect = [](void* out, int columns, char** values, char**) {
    EXPECT_EQ(columns, 2);
    (*static_cast<std::map<std::string, std::string>*>(out))[values[0]] =
        values[1] == nullptr ? "" : values[1];
    return 0;
  };
  if (sqlite3_exec(db, sql, collect, &rows, &error) != SQLITE_OK) {
    ADD_FAILURE() << sql << ": " << (error == nullptr ? "?" : error);
  }
  sqlite3_free(error);
  sqlite3_close(db);
  return rows;
}

}  // namespace

RunningRun::RunningRun(const std::vector<std::string>& arguments,
                       std::string log)
    : RunningRun(Program("cox"), arguments, std::move(log)) {}

RunningRun::RunningRun(const Program& program,
                       const std::vector<std::string>& arguments,
                       std::string log)
    : log_(std::move(log)) {
  ChildOptions options;
  options.argv.push_back(JoinPath(Environment("COX_BIN_DIR"), program.name));
  options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
  options.log_path = log_;
  auto pid = SpawnChild(options);
  EXPECT_TRUE(pid.ok()) << pid.status();
  pid_ = pid.value_or(0);
}

RunningRun::~RunningRun() {
  if (pid_ != 0) {
    SignalChild(pid_, SIGKILL);
    WaitChild(pid_, absl::Seconds(10));
  }
}

RunResult RunningRun::Wait(absl::Duration limit) {
  RunResult result;
  const ChildExit exit = WaitChild(pid_, limit);
  EXPECT_TRUE(exit.exited) << "still running after " << limit;
  if (!exit.exited) {
    return result;
  }
  pid_ = 0;
  result.exit_code = exit.signal != 0 ? -1 : exit.code;
  result.signal = exit.signal;
  result.output = Fs::Real().ReadAll(log_).value_or("");
  return result;
}

RunResult Cox(const std::vector<std::string>& arguments,
              const std::string& scratch, absl::Duration limit) {
  static int count = 0;
  RunningRun run(arguments,
                 JoinPath(scratch, absl::StrCat("cox-", count++, ".log")));
  return run.Wait(limit);
}

bool Eventually(const std::function<bool()>& condition, absl::Duration limit) {
  const MonoTime deadline = Clock::Real().Now() + limit;
  while (Clock::Real().Now() < deadline) {
    if (condition()) {
      return true;
    }
    Pause();
  }
  return condition();
}

std::map<std::string, std::string> CommittedSteps(const std::string& run_dir) {
  return Query(
      run_dir,
      "SELECT stage || '/' || step, weight_hash || ' ' || batch_sha256 "
      "FROM step");
}

std::map<std::string, std::string> UnitHashes(const std::string& run_dir) {
  return Query(run_dir,
               "SELECT stage || '/' || step || '/' || idx, sha256 FROM unit");
}

std::string LedgerEvents(const std::string& run_dir) {
  std::string text;
  for (const auto& [number, event] :
       Query(run_dir, "SELECT number, kind || ': ' || text FROM event")) {
    absl::StrAppend(&text, event, "\n");
  }
  return text;
}

pid_t FindProcess(const std::string& run_dir, const std::string& name) {
  auto pids = Fs::Real().List("/proc");
  for (const std::string& pid : pids.value_or(std::vector<std::string>())) {
    if (pid.find_first_not_of("0123456789") != std::string::npos) {
      continue;
    }
    std::ifstream in(absl::StrCat("/proc/", pid, "/cmdline"));
    // A process that ends meanwhile is a read error, which throws from an
    // iterator over the buffer.
    std::ostringstream text;
    text << in.rdbuf();
    const std::string line = text.str();
    if (line.find(run_dir) == std::string::npos) {
      continue;
    }
    const bool coordinator = line.find("cox-coordinator") != std::string::npos;
    const std::vector<std::string> words = absl::StrSplit(line, '\0');
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      if ((words[i] == "--name" && words[i + 1] == name) ||
          (coordinator && name == "coordinator")) {
        return std::atoi(pid.c_str());
      }
    }
  }
  return 0;
}

std::string WriteTableTask(const std::string& dir,
                           const std::string& extra_yaml) {
  const auto write = [&dir](const char* name, const std::string& text) {
    EXPECT_TRUE(WriteFileDurably(Fs::Real(), JoinPath(dir, name), text).ok());
  };
  write("prompts.jsonl", "{\"prompt_ids\":[3]}\n");
  write("table.json",
        "{\"default\":null,\"entries\":["
        "{\"response\":[0],\"reward\":0.0},"
        "{\"response\":[1],\"reward\":0.5},"
        "{\"response\":[2],\"reward\":1.0},"
        "{\"response\":[3],\"reward\":0.2}]}\n");
  write("run.yaml",
        absl::StrCat(
            "name: table\nseed: 7\nstages: [ppo]\n"
            "model: {type: gpt2, hidden: 16, layers: 1, heads: 2, "
            "max_positions: 8}\n"
            "tokenizer: {kind: none, vocab_size: 4, eos_ids: [0], pad_id: 3}\n"
            "roles: {actors: 2, rewards: 1, learners: 2}\n"
            "generation: {max_prompt_tokens: 1, max_new_tokens: 1}\n"
            "reward: {kind: table, path: table.json, monitor_gold: false}\n"
            "checkpoint: {every: 3}\n"
            "limits: {lease_s: 1, heartbeat_s: 0.2, suspect_s: 1.5}\n"
            "ppo: {prompts: [prompts.jsonl], steps: 12, prompts_per_step: 64, "
            "unit_prompts: 16, epochs: 2, minibatches: 2, kl_coef: 0.02, "
            "missing_eos: none, optimizer: {lr: 3.0e-2}, "
            "value_optimizer: {lr: 3.0e-2}}\n",
            extra_yaml));
  return JoinPath(dir, "run.yaml");
}

std::string WriteMiniRecipe(const std::string& dir,
                            const std::string& extra_yaml) {
  const std::string data =
      JoinPath(Environment("COX_SOURCE_DIR"), "examples/data");
  const std::string reviews = JoinPath(data, "reviews");
  EXPECT_TRUE(
      WriteFileDurably(
          Fs::Real(), JoinPath(dir, "run.yaml"),
          absl::StrCat(
              "name: mini\nseed: 3\n"
              "stages: [pretrain, sft, collect, rm, ppo, eval]\n"
              "roles: {actors: 2, rewards: 1, learners: 2}\n"
              "model: {type: gpt2, hidden: 32, layers: 2, heads: 2, "
              "max_positions: 64}\n"
              "tokenizer: {kind: train, vocab_size: 600, files: [",
              reviews,
              "/sft.jsonl]}\n"
              "pretrain: {train: [",
              reviews, "/pretrain.jsonl], heldout: [", reviews,
              "/heldout_text.jsonl], steps: 12, batch: 8, "
              "sequence_length: 32, optimizer: {lr: 3.0e-3}}\n"
              "sft: {train: [",
              reviews,
              "/sft.jsonl], steps: 8, batch: 8, "
              "sequence_length: 60}\n"
              "generation: {max_prompt_tokens: 40, max_new_tokens: 12}\n"
              "collect: {prompts: [",
              reviews,
              "/comparisons_prompts.jsonl], "
              "max_prompts: 24, unit_prompts: 6}\n"
              "rm: {human_pairs: [",
              reviews,
              "/human_pairs.jsonl], epochs: 1, "
              "batch: 8}\n"
              "reward: {kind: rm, lexicon: ",
              data,
              "/lexicon/vader_lexicon.tsv}\n"
              "ppo: {prompts: [",
              reviews,
              "/prompts.jsonl], steps: 4, "
              "prompts_per_step: 16, unit_prompts: 4, epochs: 2, "
              "minibatches: 2, ptx: {coef: 0.5, batch: 4, sequence_length: 32}}"
              "\n"
              "eval: {prompts: [",
              reviews,
              "/heldout_prompts.jsonl], "
              "max_prompts: 16, unit_prompts: 8, bootstrap: 200}\n"
              "checkpoint: {every: 5}\n"
              "limits: {lease_s: 2, heartbeat_s: 0.2, suspect_s: 1.5}\n",
              extra_yaml))
          .ok());
  return JoinPath(dir, "run.yaml");
}

}  // namespace cox
