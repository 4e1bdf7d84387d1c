#include "cli/operator_command.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/rpc/tls.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

int Fail(std::string_view command, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", std::string(command).c_str(),
               std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

std::string Seconds(int64_t ms) {
  return absl::StrFormat("%.1f s", static_cast<double>(ms) / 1000.0);
}

int Control(const RunTarget& target, const char* name,
            absl::StatusOr<int64_t> (OperatorClient::*call)()) {
  auto client = ConnectTo(target);
  auto step = ((*client).*call)();
  if (!step.ok()) {
    return FailUnreachable(name, target, step.status());
  }
  if (*step == 0) {
    std::printf("%s: takes effect at once\n", name);
  } else {
    std::printf("%s: takes effect at step %lld\n", name,
                static_cast<long long>(*step));
  }
  return kExitDone;
}

// Non-empty lines of a JSONL file, with their numbers.
absl::StatusOr<std::vector<std::pair<int64_t, std::string>>> ReadLines(
    const std::string& path) {
  COX_ASSIGN_OR_RETURN(const std::string text, Fs::Real().ReadAll(path));
  std::vector<std::pair<int64_t, std::string>> lines;
  int64_t number = 0;
  for (const auto line : absl::StrSplit(text, '\n')) {
    ++number;
    if (!line.empty()) {
      lines.emplace_back(number, std::string(line));
    }
  }
  return lines;
}

}  // namespace

std::unique_ptr<OperatorClient> ConnectTo(const RunTarget& target) {
  OperatorClientOptions options;
  // A folder that cannot be read shows as a refused connection otherwise.
  if (const absl::Status tls = InitProcessTls(target.tls_dir, ""); !tls.ok()) {
    std::fprintf(stderr, "cox: %s\n", std::string(tls.message()).c_str());
  }
  if (ProcessTls() != nullptr) options.role = ProcessTls()->identity().role;
  options.address =
      target.address.empty()
          ? absl::StrCat("file:", JoinPath(target.run_dir, "endpoints.json"))
          : target.address;
  options.run_id = target.run_id;
  options.patience = absl::Seconds(3);
  return std::make_unique<OperatorClient>(std::move(options));
}

// Nobody answers: for a directory that is what an ended run looks like.
int FailUnreachable(std::string_view command, const RunTarget& target,
                    const absl::Status& status) {
  if (!target.run_dir.empty() && absl::IsUnavailable(status)) {
    const bool done =
        Fs::Real().Exists(JoinPath(target.run_dir, "report.html"));
    std::fprintf(stderr,
                 "%s: no coordinator answers for %s: the run has ended or is "
                 "stopped%s\n",
                 std::string(command).c_str(), target.run_dir.c_str(),
                 done ? " (its report.html has the results so far)" : "");
    return kExitRetryable;
  }
  return Fail(command, status);
}

int ShowStatus(const RunTarget& target) {
  auto client = ConnectTo(target);
  auto status = client->Status();
  if (!status.ok()) {
    return FailUnreachable("status", target, status.status());
  }
  std::printf("run %s (%s): %s, epoch %lld, generation %lld, up %.0f s\n",
              status->name().c_str(), status->run_id().substr(0, 8).c_str(),
              status->state().c_str(), static_cast<long long>(status->epoch()),
              static_cast<long long>(status->generation()), status->uptime_s());
  if (!status->failure().empty()) {
    std::printf("failure: %s\n", status->failure().c_str());
  }
  for (const auto& stage : status->stages()) {
    std::printf("  %-9s %-20s %lld/%lld\n", stage.kind().c_str(),
                stage.state().c_str(), static_cast<long long>(stage.step()),
                static_cast<long long>(stage.total_steps()));
  }
  std::printf("units: %lld pending, %lld leased, %lld submitted\n",
              static_cast<long long>(status->units_pending()),
              static_cast<long long>(status->units_leased()),
              static_cast<long long>(status->units_submitted()));
  for (const std::string& unit : status->units_given_up()) {
    std::printf("  given up: %s\n", unit.c_str());
  }
  for (const auto& session : status->sessions()) {
    std::printf(
        "  %-12s %-6s %6.0f MB  %s for %s%s\n", session.name().c_str(),
        session.alive() ? "alive" : "gone",
        static_cast<double>(session.rss_bytes()) / 1e6, session.state().c_str(),
        Seconds(session.state_ms()).c_str(),
        session.waiting_for().empty()
            ? ""
            : absl::StrCat(", waits for ", session.waiting_for()).c_str());
  }
  for (const auto& metric : status->last_metrics()) {
    std::printf("  %-28s %.6g\n", metric.name().c_str(), metric.value());
  }
  return kExitDone;
}

int ShowStuck(const RunTarget& target) {
  auto client = ConnectTo(target);
  auto stuck = client->Stuck();
  if (!stuck.ok()) {
    return FailUnreachable("stuck", target, stuck.status());
  }
  for (const auto& wait : stuck->waits()) {
    std::printf("%-12s waits for %-14s %s, since %s\n", wait.who().c_str(),
                wait.whom().c_str(), wait.what().c_str(),
                Seconds(wait.since_ms()).c_str());
  }
  if (stuck->waits().empty()) {
    std::printf("nobody waits\n");
  }
  return kExitDone;
}

int ShowEvents(const RunTarget& target, int32_t limit) {
  auto client = ConnectTo(target);
  auto events = client->Events(0, limit);
  if (!events.ok()) {
    return FailUnreachable("events", target, events.status());
  }
  for (const auto& event : events->events()) {
    std::printf("%6lld  %-18s %s\n", static_cast<long long>(event.number()),
                event.kind().c_str(), event.text().c_str());
  }
  return kExitDone;
}

int StopRun(const RunTarget& target) {
  return Control(target, "stop", &OperatorClient::Stop);
}
int PauseRun(const RunTarget& target) {
  return Control(target, "pause", &OperatorClient::Pause);
}
int ResumeRun(const RunTarget& target) {
  return Control(target, "resume", &OperatorClient::Resume);
}

int ScaleRun(const RunTarget& target, const std::string& what) {
  const size_t equals = what.find('=');
  int32_t replicas = 0;
  if (equals == std::string::npos ||
      !absl::SimpleAtoi(what.substr(equals + 1), &replicas)) {
    return Fail("scale",
                absl::InvalidArgumentError(absl::StrCat(
                    "expected ROLE=N as in actor=3, found '", what, "'")));
  }
  auto client = ConnectTo(target);
  const auto step = client->Scale(what.substr(0, equals), replicas);
  if (!step.ok()) {
    return FailUnreachable("scale", target, step.status());
  }
  std::printf("scale: `cox run` brings the run to %s\n", what.c_str());
  return kExitDone;
}

int SetKlCoef(const RunTarget& target, double kl_coef) {
  auto client = ConnectTo(target);
  const auto step = client->SetKlCoef(kl_coef);
  if (!step.ok()) {
    return FailUnreachable("kl-coef", target, step.status());
  }
  std::printf("kl-coef: %g from step %lld on\n", kl_coef,
              static_cast<long long>(*step));
  return kExitDone;
}

int ShowSamples(const std::string& run_dir, const std::string& stage,
                int64_t step, int32_t limit) {
  auto lines = ReadLines(JoinPath(run_dir, "samples.jsonl"));
  if (!lines.ok()) {
    return Fail("samples", lines.status());
  }
  std::vector<Json> rows;
  for (const auto& [number, line] : *lines) {
    Json row = Json::parse(line, nullptr, false);
    if (!row.is_object()) {
      return Fail("samples", absl::DataLossError(absl::StrCat(
                                 run_dir, "/samples.jsonl:", number,
                                 ": expected a JSON object")));
    }
    if ((stage.empty() || row.value("stage", "") == stage) &&
        (step < 0 || row.value("step", int64_t{-1}) == step)) {
      rows.push_back(std::move(row));
    }
  }
  const size_t first =
      rows.size() > static_cast<size_t>(limit) ? rows.size() - limit : 0;
  for (size_t i = first; i < rows.size(); ++i) {
    const Json& row = rows[i];
    const Json reward = row.value("reward", Json(nullptr));
    std::printf("%s  step %lld  reward %s  %s\n  %s\033[1m%s\033[0m\n",
                row.value("stage", "?").c_str(),
                static_cast<long long>(row.value("step", int64_t{0})),
                reward.is_number()
                    ? absl::StrFormat("%.3f", reward.get<double>()).c_str()
                    : "-",
                row.value("id", "").c_str(), row.value("prompt", "").c_str(),
                row.value("response", "").c_str());
  }
  return kExitDone;
}

int ShowLogs(const std::string& run_dir, const std::string& name,
             int32_t lines) {
  const std::string dir = JoinPath(run_dir, "logs");
  auto names = Fs::Real().List(dir);
  if (!names.ok()) {
    return Fail("logs", names.status());
  }
  bool found = false;
  for (const std::string& file : *names) {
    if (!name.empty() && file != absl::StrCat(name, ".log")) {
      continue;
    }
    found = true;
    auto text = ReadLines(JoinPath(dir, file));
    if (!text.ok()) {
      return Fail("logs", text.status());
    }
    std::printf("== %s\n", file.c_str());
    const size_t first =
        text->size() > static_cast<size_t>(lines) ? text->size() - lines : 0;
    for (size_t i = first; i < text->size(); ++i) {
      std::printf("%s\n", (*text)[i].second.c_str());
    }
  }
  if (!found) {
    return Fail("logs", absl::NotFoundError(
                            absl::StrCat(dir, " has no log of '", name, "'")));
  }
  return kExitDone;
}

int ExportLabels(const std::string& run_dir, const std::string& out) {
  auto text = Fs::Real().ReadAll(JoinPath(run_dir, "collect_samples.jsonl"));
  if (!text.ok()) {
    return Fail(
        "labels export",
        Annotate(text.status(), "no samples wait for labels in this run"));
  }
  if (absl::Status status = WriteFileDurably(Fs::Real(), out, *text);
      !status.ok()) {
    return Fail("labels export", status);
  }
  std::printf(
      "labels: %lld prompts to rank in %s; add \"ranking\": [rank of "
      "each response, 1 = best] to each row\n",
      static_cast<long long>(std::count(text->begin(), text->end(), '\n')),
      out.c_str());
  return kExitDone;
}

int ImportLabels(const std::string& run_dir, const std::string& file) {
  auto samples = ReadLines(JoinPath(run_dir, "collect_samples.jsonl"));
  if (!samples.ok()) {
    return Fail("labels import",
                Annotate(samples.status(), "no samples wait for labels"));
  }
  std::map<uint64_t, size_t> expected;
  for (const auto& [number, line] : *samples) {
    const Json row = Json::parse(line, nullptr, false);
    if (row.is_object()) {
      expected[row.value("prompt_id", uint64_t{0})] = row["responses"].size();
    }
  }
  auto lines = ReadLines(file);
  if (!lines.ok()) {
    return Fail("labels import", lines.status());
  }
  std::set<uint64_t> seen;
  std::string labels;
  for (const auto& [number, line] : *lines) {
    const auto bad = [&file, number = number](const std::string& what) {
      return Fail("labels import", absl::InvalidArgumentError(absl::StrCat(
                                       file, ":", number, ": ", what)));
    };
    const Json row = Json::parse(line, nullptr, false);
    if (!row.is_object() || !row.contains("prompt_id") ||
        !row["prompt_id"].is_number_unsigned() || !row.contains("ranking") ||
        !row["ranking"].is_array()) {
      return bad("expected an object with \"prompt_id\" and \"ranking\"");
    }
    const auto id = row["prompt_id"].get<uint64_t>();
    if (!expected.contains(id) || !seen.insert(id).second) {
      return bad(
          absl::StrCat("prompt_id ", id, " is unknown or was ranked before"));
    }
    if (row["ranking"].size() != expected[id]) {
      return bad(absl::StrCat("expected ", expected[id], " ranks, found ",
                              row["ranking"].size()));
    }
    for (const Json& rank : row["ranking"]) {
      const int64_t value = rank.is_number_integer() ? rank.get<int64_t>() : 0;
      if (value < 1 || value > static_cast<int64_t>(expected[id])) {
        return bad(absl::StrCat("expected ranks between 1 and ", expected[id],
                                ", found ", rank.dump()));
      }
    }
    labels +=
        Json{{"prompt_id", id}, {"ranking", row["ranking"]}}.dump() + "\n";
  }
  if (seen.size() != expected.size()) {
    return Fail("labels import",
                absl::InvalidArgumentError(absl::StrCat(
                    file, ": expected rankings for ", expected.size(),
                    " prompts, found ", seen.size())));
  }
  if (absl::Status status = WriteFileDurably(
          Fs::Real(), JoinPath(run_dir, "labels.jsonl"), labels);
      !status.ok()) {
    return Fail("labels import", status);
  }
  std::printf("labels: %zu rankings imported; the run goes on\n", seen.size());
  return kExitDone;
}

}  // namespace cox
