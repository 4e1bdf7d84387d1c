// cox: launches runs on this machine and talks to runs on any.

#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/bench_command.h"
#include "cli/certs_command.h"
#include "cli/chaos_command.h"
#include "cli/ckpt_command.h"
#include "cli/config_command.h"
#include "cli/doctor_command.h"
#include "cli/exec_sibling.h"
#include "cli/import_command.h"
#include "cli/k8s_command.h"
#include "cli/ledger_command.h"
#include "cli/metric_command.h"
#include "cli/operator_command.h"
#include "cli/plan_command.h"
#include "cli/run_command.h"
#include "cli/selftest_command.h"
#include "cli/watch_command.h"
#include "cli/why_command.h"
#include "lib/base/log.h"
#include "lib/base/process.h"

namespace cox {
namespace {

// Values that subcommands fill; each callback reads what it needs.
struct Arguments {
  RunOptions run;
  ChaosOptions chaos;
  SelfTestOptions selftest;
  std::string file;
  std::string out;
  std::string name;
  std::string key;
  std::vector<std::string> overrides;
  RunTarget target;
  CertsOptions certs;
  K8sOptions k8s;
  LedgerShowOptions show;
  ExplainOptions explain;
  std::string stage;
  int64_t step = -1;
  int32_t limit = 20;
  TopOptions top;
  PlanCommandOptions plan;
  bool follow = false;
  std::string dtype = "fp32";
  std::string device = "cpu";
};

void AddTarget(CLI::App* command, Arguments& a) {
  command->add_option("run", a.target.run_dir, "run directory");
  command->add_option("--address", a.target.address,
                      "host:port of the coordinator, instead of a directory");
  command->add_option("--run-id", a.target.run_id, "with --address");
  command->add_option("--tls", a.target.tls_dir,
                      "certificate folder of an operator or viewer");
}

void AddRunCommands(CLI::App& app, Arguments& a, int& code) {
  CLI::App* run = app.add_subcommand("run", "start or resume a run here");
  run->add_option("file", a.run.file, "run.yaml, or a run directory")
      ->required();
  run->add_option("overrides", a.run.overrides, "a.b.c=value ...");
  run->add_option("--max-restarts", a.run.max_restarts,
                  "per process within ten minutes");
  run->add_flag("--quiet", a.run.quiet, "no progress lines");
  run->add_option("--tls", a.run.tls_dir,
                  "folder of `cox certs init`: mutual TLS between processes");
  run->add_option("--actor-endpoints", a.run.actor_endpoints)->group("");
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

  CLI::App* scale =
      app.add_subcommand("scale", "more or fewer actors or reward replicas");
  AddTarget(scale, a);
  scale->add_option("to", a.name, "for example actor=3");
  scale->callback([&] {
    // With --address there is no directory before it.
    if (a.name.empty()) std::swap(a.name, a.target.run_dir);
    code = ScaleRun(a.target, a.name);
  });

  CLI::App* kl = app.add_subcommand(
      "kl-coef", "another weight of the KL penalty, from a step border on");
  AddTarget(kl, a);
  kl->add_option("value", a.name, "for example 0.02");
  kl->callback([&] {
    if (a.name.empty()) std::swap(a.name, a.target.run_dir);
    double value = -1;
    if (!absl::SimpleAtod(a.name, &value)) {
      throw CLI::ValidationError("value",
                                 "a number expected, found '" + a.name + "'");
    }
    code = SetKlCoef(a.target, value);
  });

  CLI::App* top = app.add_subcommand("top", "one screen, refreshed");
  AddTarget(top, a);
  top->add_option("--every", a.top.every_s, "seconds between two screens")
      ->check(CLI::Range(0.1, 3600.0));
  top->add_option("--count", a.top.count, "screens, then it ends; 0 = never");
  top->callback([&] {
    a.top.target = a.target;
    code = Top(a.top);
  });

  CLI::App* events = app.add_subcommand("events", "what happened, in order");
  AddTarget(events, a);
  events->add_option("--limit", a.limit)->check(CLI::Range(1, 10000));
  events->callback([&] { code = ShowEvents(a.target, a.limit); });

  CLI::App* samples = app.add_subcommand("samples", "what the policy writes");
  samples->add_option("run", a.target.run_dir)->required();
  samples->add_option("--stage", a.stage);
  samples->add_option("--step", a.step);
  samples->add_option("--limit", a.limit)->check(CLI::Range(1, 100000));
  samples->callback(
      [&] { code = ShowSamples(a.target.run_dir, a.stage, a.step, a.limit); });

  CLI::App* logs = app.add_subcommand("logs", "last lines of the roles' logs");
  logs->add_option("run", a.target.run_dir)->required();
  logs->add_option("name", a.name, "for example learner-0");
  logs->add_option("--lines", a.limit)->check(CLI::Range(1, 100000));
  logs->add_flag("-f,--follow", a.follow, "go on with what is appended");
  logs->callback([&] {
    code = a.follow ? FollowLogs(a.target.run_dir, a.name, a.limit)
                    : ShowLogs(a.target.run_dir, a.name, a.limit);
  });

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

void AddChaosCommand(CLI::App& app, Arguments& a, int& code) {
  CLI::App* chaos = app.add_subcommand(
      "chaos", "runs under real process faults, compared with a calm one");
  ChaosOptions& o = a.chaos;
  chaos->add_option("file", o.file, "run.yaml; take a small one")->required();
  chaos->add_option("overrides", o.overrides, "a.b.c=value ...");
  chaos->add_option("--kills", o.kills, "SIGKILLs over all runs")
      ->check(CLI::Range(1, 100000));
  chaos->add_option("--seed", o.seed, "of the schedule of faults");
  chaos->add_option("--roles", o.roles,
                    "actor,reward,learner,coordinator,all (= everything at "
                    "once, `cox run` too)");
  chaos->add_option("--faults", o.faults,
                    "kill,stop,slow,corrupt,enospc; those besides kill a "
                    "tenth as often");
  chaos->add_option("--mode", o.mode, "schedule.mode instead of the file's")
      ->check(CLI::IsMember({"sync", "fixed_lag", "streaming"}));
  chaos->add_option("--dir", o.dir, "work here; default runs/<name>-chaos");
  chaos->add_option("--json", o.json, "write the figures to this file");
  chaos->add_flag("--keep", o.keep, "keep run directories that were equal");
  chaos->add_option("--patience", o.patience_s,
                    "seconds without a step until a run counts as stuck");
  chaos->callback([&] { code = Chaos(o); });
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

  CLI::App* plan = app.add_subcommand(
      "plan", "bytes, memory and step time of a run, before it runs");
  plan->add_option("file", a.plan.file, "run.yaml")->required();
  plan->add_option("overrides", a.plan.overrides, "a.b.c=value ...");
  plan->add_option(
      "--cluster", a.plan.cluster,
      "YAML file (docs/planning.md); local = measure this machine");
  plan->add_option("--prompt-tokens", a.plan.prompt_tokens,
                   "length of every prompt, in place of the prompts' own");
  plan->add_option("--answer-tokens", a.plan.answer_tokens,
                   "length of every answer; else as the demonstrations have "
                   "them, else generation.max_new_tokens");
  plan->add_option("--compare", a.plan.compare,
                   "directory of a run that is over: print the prediction "
                   "beside its step times and memory");
  plan->add_flag("--json", a.plan.json);
  plan->callback([&] { code = PlanRun(a.plan); });

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
  exported->add_option("--dtype", a.dtype)
      ->check(CLI::IsMember({"fp32", "bf16"}));
  exported->callback(
      [&] { code = ExportCheckpoint(a.file, a.out, a.name, a.dtype); });
  CLI::App* imported =
      ckpt->add_subcommand("import", "a GGUF file as a model folder");
  imported->add_option("source", a.file, "GGUF file or model folder")
      ->required();
  imported->add_option("out", a.out, "folder to create")->required();
  imported->add_option("--dtype", a.dtype)
      ->check(CLI::IsMember({"fp32", "bf16"}));
  imported->callback([&] { code = ImportModel(a.file, a.out, a.dtype); });

  CLI::App* selftest = app.add_subcommand(
      "selftest", "train on tasks with a known optimum and compare");
  selftest
      ->add_option("--algorithm", a.selftest.algorithms,
                   "only these (default: all)")
      ->check(CLI::IsMember({"ppo", "rloo", "grpo", "reinforce_pp"}));
  selftest->add_option("--jobs", a.selftest.jobs, "runs at a time")
      ->check(CLI::Range(1, 64));
  selftest->add_flag("--quick", a.selftest.quick, "the bandit task alone");
  selftest->add_flag("--keep", a.selftest.keep, "leave the run directories");
  selftest->callback([&] { code = SelfTest(a.selftest); });

  CLI::App* doctor =
      app.add_subcommand("doctor", "what this machine has and lacks");
  doctor->add_option("--device", a.device, "exit 1 unless a run can use it")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  doctor->callback([&] { code = Doctor(a.device); });
}

// Commands that read what a run recorded.
void AddRecordCommands(CLI::App& app, Arguments& a, int& code) {
  CLI::App* ledger = app.add_subcommand("ledger", "what the run recorded");
  ledger->require_subcommand(1);
  CLI::App* verify = ledger->add_subcommand(
      "verify",
      "check every invariant; reads only, also while the run is live");
  verify->add_option("run", a.show.run_dir, "run directory")->required();
  verify->add_flag("--json", a.show.json);
  verify->callback([&] { code = VerifyLedger(a.show.run_dir, a.show.json); });
  CLI::App* show =
      ledger->add_subcommand("show", "steps, or what is asked for");
  show->add_option("run", a.show.run_dir, "run directory")->required();
  show->add_option("--stage", a.show.stage, "name or number");
  show->add_option("--step", a.show.step);
  show->add_flag("--units", a.show.units);
  show->add_flag("--events", a.show.events);
  show->add_flag("--versions", a.show.versions);
  show->add_flag("--checkpoints", a.show.checkpoints);
  show->add_flag("--json", a.show.json);
  show->callback([&] { code = ShowLedger(a.show); });

  CLI::App* why = app.add_subcommand("why", "where a sample comes from");
  why->add_option("run", a.show.run_dir, "run directory")->required();
  why->add_option("--sample", a.name,
                  "s4.12.3/5.0 as `cox samples` prints it, "
                  "or a unit, s4.12.3")
      ->required();
  why->add_flag("--json", a.show.json);
  why->callback(
      [&] { code = ExplainSample(a.show.run_dir, a.name, a.show.json); });

  CLI::App* metric = app.add_subcommand(
      "explain", "what a metric means; with --check: is it as recorded?");
  metric->add_option("metric", a.explain.metric, "name or alias; none = all");
  metric->add_option("--check", a.explain.check,
                     "run directory: compute it again and compare");
  metric->add_option("--stage", a.explain.stage, "name or number; default all");
  metric->add_option("--step", a.explain.step, "only this step");
  metric->add_option("--to", a.explain.to, "with --step: the last one");
  metric->add_option("--ranks", a.explain.ranks, "default: those of the run");
  metric->add_option("--tolerance", a.explain.tolerance,
                     "largest difference that counts as equal; default 0");
  metric->add_flag("--json", a.explain.json);
  metric->callback([&] { code = ExplainMetricCommand(a.explain); });
}

void AddK8sCommands(CLI::App& app, Arguments& a, int& code) {
  CLI::App* k8s = app.add_subcommand("k8s", "launch on a cluster");
  k8s->require_subcommand(1);
  const auto add = [&](const char* name, const char* text, bool renders,
                       int (*call)(const K8sOptions&)) {
    CLI::App* command = k8s->add_subcommand(name, text);
    command->add_option("--namespace", a.k8s.ns, "default: cox-<run>");
    if (renders) {
      command->add_option("file", a.k8s.file, "run.yaml")->required();
      command->add_option("overrides", a.k8s.overrides, "a.b.c=value ...");
      command->add_option("--image-prefix", a.k8s.image_prefix,
                          "for example registry.example/team/");
      command->add_option("--tag", a.k8s.tag, "of the images");
      command->add_option("--certs", a.k8s.certs_dir,
                          "folder of `cox certs init`: adds the Secrets");
      command->add_option("--host-volumes", a.k8s.host_volumes,
                          "folder on the node instead of a storage class");
    }
    command->callback([&a, &code, call] { code = call(a.k8s); });
    return command;
  };
  add("render", "run.yaml as Kubernetes objects", true, K8sRender);
  add("run", "apply and watch; Ctrl-C detaches", true, K8sRun);
  CLI::App* check = add("check", "are these objects right?", false, K8sCheck);
  check->add_option("file", a.k8s.file, "objects; - = stdin")->required();
  check->add_flag("--offline", a.k8s.offline, "do not ask a cluster");
  CLI::App* status = add("status", "what runs", false, K8sStatus);
  CLI::App* logs = add("logs", "last lines of a role", false, K8sLogs);
  for (CLI::App* command : {status, logs}) {
    command->add_option("--file", a.k8s.file, "run.yaml, names the namespace");
  }
  logs->add_option("role", a.k8s.role)
      ->required()
      ->check(CLI::IsMember({"coordinator", "learner", "actor", "reward"}));
  logs->add_flag("-f,--follow", a.k8s.follow);
  CLI::App* doctor =
      add("doctor", "what the cluster has and lacks", false, K8sDoctor);
  doctor->add_flag("--all-reduce", a.k8s.all_reduce,
                   "two pods sum 64 MiB; --namespace: default");
  doctor->add_option("--image-prefix", a.k8s.image_prefix,
                     "for example registry.example/team/");
  doctor->add_option("--tag", a.k8s.tag, "of the image");
}

void AddCertsCommands(CLI::App& app, Arguments& a, int& code) {
  CLI::App* certs = app.add_subcommand("certs", "certificates of a run");
  certs->require_subcommand(1);
  const auto lifetime = [&a](CLI::App* command) {
    command->add_option("--lifetime", a.certs.lifetime, "for example 24h");
  };
  CLI::App* init = certs->add_subcommand("init", "authority, one per role");
  init->add_option("dir", a.certs.dir, "folder to create")->required();
  init->add_option("--run", a.certs.run, "name of the run")->required();
  init->add_option("--namespace", a.certs.ns, "Kubernetes namespace");
  init->add_option("--trust-domain", a.certs.trust_domain);
  init->add_option("--dns", a.certs.dns_names,
                   "further names, for clients that check them");
  lifetime(init);
  init->callback([&] { code = InitCerts(a.certs); });
  CLI::App* renew = certs->add_subcommand("renew", "new ones, no restart");
  renew->add_option("dir", a.certs.dir)->required();
  lifetime(renew);
  renew->callback([&] { code = RenewCerts(a.certs); });
  CLI::App* show = certs->add_subcommand("show", "identities and expiry");
  show->add_option("dir", a.certs.dir)->required();
  show->callback([&] { code = ShowCerts(a.certs); });
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  cox::InitLog("cox");
  cox::InitProcess(/*die_with_parent=*/false);
  const std::string first = argc > 1 ? argv[1] : "";
  if (first == "chat") {
    return cox::ExecSibling("cox-chat", {argv + 2, argv + argc});
  }
  if (first == "bench") {
    return cox::BenchCommand(argc - 1, argv + 1);
  }
  if (first == "replay") {
    return cox::ExecSibling("cox-replay", {argv + 1, argv + argc});
  }
  cox::Arguments arguments;
  int code = cox::kExitDone;
  CLI::App app{"Coxswain: language models from human feedback", "cox"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "cox " COX_VERSION);
  cox::AddRunCommands(app, arguments, code);
  cox::AddFileCommands(app, arguments, code);
  cox::AddCertsCommands(app, arguments, code);
  cox::AddK8sCommands(app, arguments, code);
  cox::AddChaosCommand(app, arguments, code);
  cox::AddRecordCommands(app, arguments, code);
  app.add_subcommand("chat", "talk to a policy: cox chat CHECKPOINT");
  app.add_subcommand("bench", "measure this machine: cox bench NAME");
  app.add_subcommand("replay",
                     "compute a logged step again: cox replay RUN "
                     "--step N");
  if (argc > 1 && argv[1][0] != '-' &&
      app.get_subcommands([argv](const CLI::App* command) {
           return command->get_name() == argv[1];
         })
          .empty()) {
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
