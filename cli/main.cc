// cox: launches runs on this machine and talks to runs on any.

#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/ckpt_command.h"
#include "cli/config_command.h"
#include "cli/doctor_command.h"
#include "cli/metric_command.h"
#include "cli/operator_command.h"
#include "cli/run_command.h"
#include "lib/base/fs.h"
#include "lib/base/log.h"
#include "lib/base/process.h"

namespace cox {
namespace {

// Values that subcommands fill; each callback reads what it needs.
struct Arguments {
  RunOptions run;
  std::string file;
  std::string out;
  std::string name;
  std::string key;
  std::vector<std::string> overrides;
  RunTarget target;
  std::string stage;
  int64_t step = -1;
  int32_t limit = 20;
  std::string dtype = "fp32";
};

void AddTarget(CLI::App* command, Arguments& a) {
  command->add_option("run", a.target.run_dir, "run directory");
  command->add_option("--address", a.target.address,
                      "host:port of the coordinator, instead of a directory");
  command->add_option("--run-id", a.target.run_id, "with --address");
}

void AddRunCommands(CLI::App& app, Arguments& a, int& code) {
  CLI::App* run = app.add_subcommand("run", "start or resume a run here");
  run->add_option("file", a.run.file, "run.yaml, or a run directory")
      ->required();
  run->add_option("overrides", a.run.overrides, "a.b.c=value ...");
  run->add_option("--max-restarts", a.run.max_restarts,
                  "per process within ten minutes");
  run->add_flag("--quiet", a.run.quiet, "no progress lines");
  run->callback([&] { code = Run(a.run); });

  const auto with_target = [&](const char* name, const char* text,
                               int (*call)(const RunTarget&)) {
    CLI::App* command = app.add_subcommand(name, text);
    AddTarget(command, a);
    command->callback([&a, &code, call] { code = call(a.target); });
  };
  with_target("status", "stages, processes, last metrics", ShowStatus);
  with_target("stuck", "who waits for whom", ShowStuck);
  with_target("stop", "drain the run; it can be resumed", StopRun);
  with_target("pause", "stop handing out work", PauseRun);
  with_target("resume", "go on after pause", ResumeRun);

  CLI::App* events = app.add_subcommand("events", "what happened, in order");
  AddTarget(events, a);
  events->add_option("--limit", a.limit)->check(CLI::Range(1, 10000));
  events->callback([&] { code = ShowEvents(a.target, a.limit); });

  CLI::App* samples = app.add_subcommand("samples", "what the policy writes");
  samples->add_option("run", a.target.run_dir)->required();
  samples->add_option("--stage", a.stage);
  samples->add_option("--step", a.step);
  samples->add_option("--limit", a.limit)->check(CLI::Range(1, 100000));
  samples->callback([&] {
    code = ShowSamples(a.target.run_dir, a.stage, a.step, a.limit);
  });

  CLI::App* logs = app.add_subcommand("logs", "last lines of the roles' logs");
  logs->add_option("run", a.target.run_dir)->required();
  logs->add_option("name", a.name, "for example learner-0");
  logs->add_option("--lines", a.limit)->check(CLI::Range(1, 100000));
  logs->callback([&] { code = ShowLogs(a.target.run_dir, a.name, a.limit); });

  CLI::App* labels = app.add_subcommand("labels", "rankings by people");
  labels->require_subcommand(1);
  CLI::App* exported = labels->add_subcommand("export", "samples to rank");
  exported->add_option("run", a.target.run_dir)->required();
  exported->add_option("out", a.out, "JSONL to write")->required();
  exported->callback([&] { code = ExportLabels(a.target.run_dir, a.out); });
  CLI::App* imported = labels->add_subcommand("import", "rankings back");
  imported->add_option("run", a.target.run_dir)->required();
  imported->add_option("file", a.file, "JSONL with rankings")->required();
  imported->callback([&] { code = ImportLabels(a.target.run_dir, a.file); });
}

void AddFileCommands(CLI::App& app, Arguments& a, int& code) {
  CLI::App* config = app.add_subcommand("config", "check, show, explain");
  config->require_subcommand(1);
  CLI::App* check = config->add_subcommand("check", "is this file valid?");
  check->add_option("file", a.file)->required();
  check->add_option("overrides", a.overrides);
  check->callback([&] { code = ConfigCheck(a.file, a.overrides); });
  CLI::App* show = config->add_subcommand("show", "the resolved configuration");
  show->add_option("file", a.file)->required();
  show->add_option("overrides", a.overrides);
  show->callback([&] { code = ConfigShow(a.file, a.overrides); });
  CLI::App* explain = config->add_subcommand("explain", "what keys mean");
  explain->add_option("key", a.key, "for example ppo.kl_coef; none = all");
  explain->callback([&] { code = ConfigExplain(a.key); });

  CLI::App* ckpt = app.add_subcommand("ckpt", "checkpoints");
  ckpt->require_subcommand(1);
  CLI::App* ls = ckpt->add_subcommand("ls", "list");
  ls->add_option("run", a.target.run_dir)->required();
  ls->callback([&] { code = ListCheckpoints(a.target.run_dir); });
  CLI::App* verify = ckpt->add_subcommand("verify", "check every hash");
  verify->add_option("dir", a.file, "a checkpoint, or a run directory")
      ->required();
  verify->callback([&] { code = VerifyCheckpoints(a.file); });
  CLI::App* exported = ckpt->add_subcommand("export", "one model folder");
  exported->add_option("checkpoint", a.file)->required();
  exported->add_option("out", a.out, "folder to create")->required();
  exported->add_option("--model", a.name, "policy, policy_ema, critic, reward")
      ->default_val("policy");
  exported->add_option("--dtype", a.dtype)->check(CLI::IsMember({"fp32", "bf16"}));
  exported->callback(
      [&] { code = ExportCheckpoint(a.file, a.out, a.name, a.dtype); });

  CLI::App* metric = app.add_subcommand("explain", "what a metric means");
  metric->add_option("metric", a.key, "name or alias; none = all");
  metric->callback([&] { code = ExplainMetricCommand(a.key); });

  app.add_subcommand("doctor", "what this machine has and lacks")
      ->callback([&] { code = Doctor(); });
}

// `cox chat` needs LibTorch and is a binary of its own.
int ExecChat(int argc, char** argv) {
  const std::string path = JoinPath(ExecutableDir(), "cox-chat");
  std::vector<char*> arguments;
  std::string own = path;
  arguments.push_back(own.data());
  for (int i = 2; i < argc; ++i) {
    arguments.push_back(argv[i]);
  }
  arguments.push_back(nullptr);
  execv(path.c_str(), arguments.data());
  std::fprintf(stderr,
               "chat: cannot start %s; it is built only with LibTorch\n",
               path.c_str());
  return kExitUsage;
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  cox::InitLog("cox");
  cox::InitProcess(/*die_with_parent=*/false);
  if (argc > 1 && std::string(argv[1]) == "chat") {
    return cox::ExecChat(argc, argv);
  }
  cox::Arguments arguments;
  int code = cox::kExitDone;
  CLI::App app{"Coxswain: language models from human feedback", "cox"};
  app.require_subcommand(1);
  cox::AddRunCommands(app, arguments, code);
  cox::AddFileCommands(app, arguments, code);
  app.add_subcommand("chat", "talk to a policy: cox chat CHECKPOINT");
  if (argc > 1 && argv[1][0] != '-' &&
      app.get_subcommands([argv](const CLI::App* command) {
           return command->get_name() == argv[1];
         }).empty()) {
    std::fprintf(stderr, "cox: no command '%s'; `cox --help` lists them\n",
                 argv[1]);
    return cox::kExitUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? cox::kExitDone : cox::kExitUsage;
  }
  return code;
}
