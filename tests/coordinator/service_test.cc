// The whole coordinator over loopback gRPC, with fake processes in this test.

#include <map>
#include <set>

#include "coordinator/coordinator_service.h"
#include "coordinator/kl_control.h"
#include "coordinator/ledger_reader.h"
#include "cox/v1/checkpoint.pb.h"
#include "cox/v1/control.pb.h"
#include "cox/v1/experience.pb.h"
#include "cox/v1/monitor.pb.h"
#include "cox/v1/rollout.pb.h"
#include "cox/v1/run.pb.h"
#include "cox/v1/version.pb.h"
#include "gmock/gmock.h"
#include "lib/base/hash.h"
#include "lib/rpc/coordinator_client.h"
#include "lib/rpc/error_reason.h"
#include "lib/rpc/operator_client.h"
#include "nlohmann/json.hpp"
#include "tests/coordinator/service_testing.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::Not;

// One actor, one reward process and one learner rank, driven turn by turn.
class FakeProcesses {
 public:
  FakeProcesses(std::unique_ptr<CoordinatorClient> actor,
                std::unique_ptr<CoordinatorClient> reward,
                std::unique_ptr<CoordinatorClient> learner)
      : actor_(std::move(actor)),
        reward_(std::move(reward)),
        learner_(std::move(learner)) {}

  CoordinatorClient& actor() { return *actor_; }
  CoordinatorClient& learner() { return *learner_; }
  int64_t steps() const { return steps_; }
  // What the batches of steps said an operator set.
  const std::map<int64_t, double>& kl_coefs() const { return kl_coefs_; }

  absl::Status Join() {
    COX_RETURN_IF_ERROR(actor_->Register().status());
    COX_RETURN_IF_ERROR(reward_->Register().status());
    COX_RETURN_IF_ERROR(learner_->Register().status());
    COX_ASSIGN_OR_RETURN(auto joined, learner_->JoinGroup(0, 1, "127.0.0.1:2",
                                                          absl::Seconds(5)));
    return joined.ready() ? absl::OkStatus()
                          : absl::InternalError("not joined");
  }

  // Until DONE or `stop_after_step` is committed.
  absl::Status Drive(int64_t stop_after_step) {
    for (int turn = 0; turn < 200; ++turn) {
      COX_ASSIGN_OR_RETURN(auto a,
                           learner_->GetAssignment(0, absl::ZeroDuration()));
      if (a.kind() == cox::v1::Assignment::DONE) {
        return absl::OkStatus();
      }
      COX_RETURN_IF_ERROR(LearnerTurn(a));
      if (steps_ == stop_after_step) {
        return absl::OkStatus();
      }
      COX_RETURN_IF_ERROR(RewardTurn());
      COX_RETURN_IF_ERROR(ActorTurn());
    }
    return absl::DeadlineExceededError("the run did not end");
  }

  std::vector<Trajectory> Generate(const cox::v1::LeasedUnit& unit) {
    std::vector<Trajectory> trajectories;
    const UnitId id{unit.unit().stage(), unit.unit().step(),
                    unit.unit().index()};
    for (int p = 0; p < unit.prompts_size(); ++p) {
      for (int s = 0; s < unit.samples_per_prompt(); ++s) {
        Trajectory t;
        t.id = {id, p, s};
        t.prompt_id = unit.prompts(p).prompt_id();
        t.prompt_ids = {unit.prompts(p).ids().begin(),
                        unit.prompts(p).ids().end()};
        t.response_ids = {5 + p, 6 + s};
        t.behaviour_logprobs = {-0.5f, -0.25f};
        t.reference_logprobs = {-0.5f, -0.25f};
        t.reward_total = p - s;
        t.reward_parts = {{"gold", p - s}};
        t.policy_hash = unit.policy().ref().content_hash();
        t.version = {unit.policy().ref().version().stage(),
                     unit.policy().ref().version().step()};
        trajectories.push_back(std::move(t));
      }
    }
    return trajectories;
  }
  absl::StatusOr<SubmitOutcome> Submit(const cox::v1::LeasedUnit& unit,
                                       const std::vector<Trajectory>& ts) {
    SubmitUnitOptions options;
    options.unit = {unit.unit().stage(), unit.unit().step(),
                    unit.unit().index()};
    options.attempt = unit.attempt();
    options.policy_hash = unit.policy().ref().content_hash();
    COX_ASSIGN_OR_RETURN(options.payload, SerializeUnit(ts));
    return actor_->SubmitUnit(options);
  }
  absl::Status LearnerTurn(const cox::v1::Assignment& a) {
    for (const cox::v1::PublishOrder& order : a.publish()) {
      COX_RETURN_IF_ERROR(
          Publish(order.ref().model(),
                  {order.ref().version().stage(), order.ref().version().step()},
                  "initial weights"));
    }
    if (a.kind() != cox::v1::Assignment::TRAIN ||
        a.last_committed() == a.total_steps()) {
      return absl::OkStatus();
    }
    const int64_t step = a.last_committed() + 1;
    if (step > 1) {
      COX_RETURN_IF_ERROR(
          Publish("policy", {a.stage(), step - 1}, Weights(step - 1)));
    }
    auto batch = learner_->TakeBatch(a.stage(), step, 0, absl::ZeroDuration());
    if (ReasonOf(batch.status()) == ErrorReason::kNotReady) {
      return absl::OkStatus();
    }
    COX_RETURN_IF_ERROR(batch.status());
    if (batch->kl_coef.has_value()) kl_coefs_[step] = *batch->kl_coef;
    if (batch->units.size() != 2) {
      return absl::InternalError("2 units expected");
    }
    cox::v1::CommitStepRequest commit;
    commit.set_stage(a.stage());
    commit.set_step(step);
    commit.set_batch_sha256(batch->batch_sha256);
    commit.set_weight_hash(Sha256Hex(Weights(step)));
    cox::v1::Metric* metric = commit.add_metrics();
    metric->set_name("objective/kl");
    metric->set_value(0.5 * static_cast<double>(step));
    if (step == a.total_steps()) {
      COX_ASSIGN_OR_RETURN(const std::string directory,
                           learner_->BeginCheckpoint(a.stage(), step));
      commit.mutable_checkpoint()->set_stage(a.stage());
      commit.mutable_checkpoint()->set_step(step);
      commit.mutable_checkpoint()->set_directory(directory);
      commit.mutable_checkpoint()->set_manifest_sha256(Sha256Hex("m"));
      commit.set_state_sha256(Sha256Hex("state"));
    }
    COX_ASSIGN_OR_RETURN(const bool replayed, learner_->CommitStep(commit));
    last_commit_ = commit;
    steps_ += replayed ? 0 : 1;
    return absl::OkStatus();
  }
  absl::Status ActorTurn() {
    COX_ASSIGN_OR_RETURN(auto lease,
                         actor_->LeaseUnits(4, absl::ZeroDuration()));
    for (const cox::v1::LeasedUnit& unit : lease.units()) {
      for (const SubmitOutcome expected :
           {SubmitOutcome::kAccepted, SubmitOutcome::kDuplicate}) {
        COX_ASSIGN_OR_RETURN(const SubmitOutcome outcome,
                             Submit(unit, Generate(unit)));
        // The last unit of collect ends its stage: its copy comes too late.
        if (outcome != expected && outcome != SubmitOutcome::kAlreadyConsumed) {
          return absl::InternalError("unexpected outcome of a submit");
        }
      }
    }
    return absl::OkStatus();
  }
  absl::Status RewardTurn() {
    COX_ASSIGN_OR_RETURN(auto a,
                         reward_->GetAssignment(0, absl::ZeroDuration()));
    cox::v1::HeartbeatRequest beat;
    for (const cox::v1::VersionSource& model : a.models()) {
      beat.add_held(model.ref().content_hash());
    }
    return reward_->Heartbeat(beat).status();
  }
  const cox::v1::CommitStepRequest& last_commit() const { return last_commit_; }

 private:
  static std::string Weights(int64_t step) {
    return absl::StrCat("weights ", step);
  }
  absl::Status Publish(const std::string& model, PolicyVersion version,
                       const std::string& manifest) {
    VersionSource source;
    source.model = model;
    source.version = version;
    source.manifest = manifest;
    source.content_hash = Sha256Hex(manifest);
    return learner_->PublishVersion(source, "127.0.0.1:1");
  }

  std::unique_ptr<CoordinatorClient> actor_;
  std::unique_ptr<CoordinatorClient> reward_;
  std::unique_ptr<CoordinatorClient> learner_;
  int64_t steps_ = 0;
  std::map<int64_t, double> kl_coefs_;
  cox::v1::CommitStepRequest last_commit_;
};

TEST_F(ServiceTest, CollectAndPpoRunToTheEndAcrossARestart) {
  Start();
  FakeProcesses processes(Client("actor"), Client("reward"), Client("learner"));
  ASSERT_OK(processes.Join());
  ASSERT_OK(processes.Drive(/*stop_after_step=*/1));
  const std::string run_id = coordinator_->run_id();
  const std::string address = coordinator_->address();

  coordinator_.reset();
  Start();
  EXPECT_EQ(coordinator_->run_id(), run_id);
  EXPECT_EQ(coordinator_->address(), address);
  ASSERT_OK(processes.Drive(/*stop_after_step=*/-1));
  EXPECT_EQ(processes.steps(), 2);

  // A step that is repeated is compared with its row.
  cox::v1::CommitStepRequest commit = processes.last_commit();
  ASSERT_OK_AND_ASSIGN(const bool replayed,
                       processes.learner().CommitStep(commit));
  EXPECT_TRUE(replayed);

  auto viewer = Operator();
  ASSERT_OK_AND_ASSIGN(auto status, viewer->Status());
  EXPECT_EQ(status.state(), "done");
  EXPECT_EQ(status.epoch(), 2);
  EXPECT_EQ(status.stages(1).step(), 2);
  ASSERT_OK_AND_ASSIGN(auto metrics, viewer->Metrics(-1, 0));
  EXPECT_EQ(metrics.rows_size(), 3);  // collect, two steps of ppo
  ASSERT_OK_AND_ASSIGN(auto events, viewer->Events(0, 1000));
  EXPECT_GT(events.events_size(), 0);

  ASSERT_OK_AND_ASSIGN(std::string lines,
                       Fs::Real().ReadAll(JoinPath(RunDir(), "metrics.jsonl")));
  EXPECT_THAT(lines, HasSubstr("\"objective/kl\":1,"));
  ASSERT_OK_AND_ASSIGN(
      std::string comparisons,
      Fs::Real().ReadAll(JoinPath(RunDir(), "comparisons.jsonl")));
  EXPECT_THAT(comparisons, HasSubstr("\"ranking\":[1,2]"));
  ASSERT_OK_AND_ASSIGN(std::string samples,
                       Fs::Real().ReadAll(JoinPath(RunDir(), "samples.jsonl")));
  EXPECT_THAT(samples, HasSubstr("\"step\":2"));
  EXPECT_TRUE(Fs::Real().Exists(JoinPath(RunDir(), "report.html")));
  ASSERT_OK_AND_ASSIGN(FetchedFile file,
                       processes.learner().FetchFile("comparisons.jsonl"));
  EXPECT_EQ(file.bytes, comparisons);
  // More than one chunk, the last not full.
  std::string large;
  while (large.size() < (size_t{5} << 19)) {
    absl::StrAppend(&large, large.size(), "\n");
  }
  ASSERT_OK(WriteFileDurably(
      Fs::Real(), JoinPath(RunDir(), "comparisons.heldout.jsonl"), large));
  ASSERT_OK_AND_ASSIGN(
      file, processes.learner().FetchFile("comparisons.heldout.jsonl"));
  EXPECT_EQ(file.bytes, large);
  EXPECT_THAT(processes.learner().FetchFile("ledger.db").status(),
              StatusIs(absl::StatusCode::kNotFound));

  // Another weight hash for a committed step is the one thing that must end
  // the run.
  commit.set_weight_hash(Sha256Hex("other weights"));
  EXPECT_THAT(processes.learner().CommitStep(commit).status(),
              StatusIs(absl::StatusCode::kDataLoss));
  ASSERT_OK_AND_ASSIGN(status, viewer->Status());
  EXPECT_EQ(status.state(), "failed");
  EXPECT_EQ(status.failure_exit_code(), 43);
}

TEST_F(ServiceTest, UnitsThatAreNotWhatWasLeasedAreRefused) {
  Start();
  FakeProcesses processes(Client("actor"), Client("reward"), Client("learner"));
  ASSERT_OK(processes.Join());
  ASSERT_OK_AND_ASSIGN(
      auto a, processes.learner().GetAssignment(0, absl::ZeroDuration()));
  EXPECT_EQ(a.kind(), cox::v1::Assignment::SERVE);
  ASSERT_OK(processes.LearnerTurn(a));
  ASSERT_OK(processes.RewardTurn());
  ASSERT_OK_AND_ASSIGN(auto lease,
                       processes.actor().LeaseUnits(1, absl::Seconds(5)));
  ASSERT_EQ(lease.units_size(), 1);
  const cox::v1::LeasedUnit& unit = lease.units(0);
  EXPECT_TRUE(unit.score().gold());
  ASSERT_EQ(unit.prompts_size(), 2);
  EXPECT_FALSE(unit.prompts(0).text().empty());

  auto wrong_prompt = processes.Generate(unit);
  wrong_prompt[0].prompt_ids.push_back(1);
  EXPECT_THAT(processes.Submit(unit, wrong_prompt).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("not the leased one")));
  auto wrong_token = processes.Generate(unit);
  wrong_token[0].response_ids[0] = 100000;
  EXPECT_THAT(processes.Submit(unit, wrong_token).status(),
              StatusIs(absl::StatusCode::kInvalidArgument));
  auto positive = processes.Generate(unit);
  positive[1].behaviour_logprobs[0] = 0.5f;
  EXPECT_THAT(processes.Submit(unit, positive).status(),
              StatusIs(absl::StatusCode::kInvalidArgument));
  auto missing = processes.Generate(unit);
  missing.pop_back();
  EXPECT_THAT(processes.Submit(unit, missing).status(),
              StatusIs(absl::StatusCode::kInvalidArgument));
  cox::v1::LeasedUnit stale = unit;
  stale.mutable_policy()->mutable_ref()->set_content_hash(Sha256Hex("stale"));
  EXPECT_THAT(processes.Submit(stale, processes.Generate(stale)).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition));

  ASSERT_OK(processes.Submit(unit, processes.Generate(unit)).status());
  auto other = processes.Generate(unit);
  other[0].response_ids[1] += 1;
  EXPECT_THAT(processes.Submit(unit, other).status(),
              StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(ServiceTest, PeopleMayLabel) {
  Start({"stages=[collect]", "collect.labeller=file"});
  FakeProcesses processes(Client("actor"), Client("reward"), Client("learner"));
  ASSERT_OK(processes.Join());
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK_AND_ASSIGN(
        auto a, processes.learner().GetAssignment(0, absl::ZeroDuration()));
    ASSERT_OK(processes.LearnerTurn(a));
    ASSERT_OK(processes.ActorTurn());
  }
  auto viewer = Operator();
  ASSERT_OK_AND_ASSIGN(auto status, viewer->Status());
  EXPECT_EQ(status.stages(0).state(), "waiting for labels");
  ASSERT_OK_AND_ASSIGN(
      std::string requests,
      Fs::Real().ReadAll(JoinPath(RunDir(), "collect_samples.jsonl")));
  EXPECT_THAT(requests, HasSubstr("the film was"));
  std::string labels;
  for (uint64_t place = 0; place < 5; ++place) {
    absl::StrAppend(&labels, "{\"prompt_id\": ", (1u << 20) | place,
                    ", \"ranking\": [2, 1]}\n");
  }
  ASSERT_OK(
      WriteFileDurably(Fs::Real(), JoinPath(RunDir(), "labels.jsonl"), labels));
  // The long poll ends when the stage does.
  ASSERT_OK_AND_ASSIGN(
      auto before, processes.actor().GetAssignment(0, absl::ZeroDuration()));
  ASSERT_OK_AND_ASSIGN(
      auto after,
      processes.actor().GetAssignment(
          before.kind() == cox::v1::Assignment::DONE ? 0 : before.serial(),
          absl::Seconds(20)));
  EXPECT_EQ(after.kind(), cox::v1::Assignment::DONE);
  EXPECT_TRUE(Fs::Real().Exists(JoinPath(RunDir(), "comparisons.jsonl")));
}

TEST_F(ServiceTest, AnotherConfigurationIsRefusedWithItsDifferences) {
  Start();
  coordinator_.reset();
  EXPECT_THAT(
      TryStart({"ppo.kl_coef=0.25"}).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ppo.kl_coef")));
  // What may change does not stop anybody.
  ASSERT_OK(TryStart({"limits.lease_s=20"}).status());
}

TEST_F(ServiceTest, ALongPromptIsAnErrorWithItsPlace) {
  Write("prompts.jsonl", "{\"prompt\": \"short\"}\n{\"prompt\": \"" +
                             std::string(200, 'x') + "yz\"}\n");
  EXPECT_THAT(TryStart({"generation.max_prompt_tokens=2"}).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("prompts.jsonl:")));
  // The failed start binds the directory to nothing.
  Write("prompts.jsonl", "{\"prompt\": \"short\"}\n");
  EXPECT_OK(TryStart({"generation.max_prompt_tokens=20"}).status());
}

TEST_F(ServiceTest, APortInUseIsAUsageError) {
  Start();
  const std::string address = coordinator_->address();
  const int port = std::stoi(address.substr(address.rfind(':') + 1));
  ASSERT_OK_AND_ASSIGN(cox::v1::RunConfig config, Config());
  ASSERT_OK_AND_ASSIGN(PreparedRun run,
                       PrepareRun(Fs::Real(), config, dir_.Join("other-run")));
  CoordinatorOptions options;
  options.port = port;
  EXPECT_THAT(
      Coordinator::Start(Fs::Real(), std::move(run), options).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("in use")));
}

TEST_F(ServiceTest, StrangersAndOtherRolesAreRefused) {
  Start();
  OperatorClientOptions stranger;
  stranger.address = coordinator_->address();
  stranger.run_id = std::string(32, '0');
  EXPECT_THAT(OperatorClient(stranger).Status().status(),
              StatusIs(absl::StatusCode::kPermissionDenied));
  auto viewer_options = stranger;
  viewer_options.run_id = coordinator_->run_id();
  viewer_options.role = "viewer";
  OperatorClient viewer(viewer_options);
  EXPECT_OK(viewer.Status().status());
  EXPECT_THAT(viewer.Samples(0, 1, 1).status(),
              StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_THAT(viewer.Stop().status(),
              StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST_F(ServiceTest, PauseKeepsUnitsBackAndStopDrains) {
  Start();
  FakeProcesses processes(Client("actor"), Client("reward"), Client("learner"));
  ASSERT_OK(processes.Join());
  auto op = Operator();
  ASSERT_OK(op->Pause().status());
  ASSERT_OK_AND_ASSIGN(
      auto a, processes.learner().GetAssignment(0, absl::ZeroDuration()));
  ASSERT_OK(processes.LearnerTurn(a));
  ASSERT_OK(processes.RewardTurn());
  ASSERT_OK_AND_ASSIGN(auto lease,
                       processes.actor().LeaseUnits(1, absl::ZeroDuration()));
  EXPECT_EQ(lease.units_size(), 0);
  ASSERT_OK(op->Resume().status());
  ASSERT_OK_AND_ASSIGN(lease,
                       processes.actor().LeaseUnits(1, absl::Seconds(5)));
  EXPECT_EQ(lease.units_size(), 1);
  EXPECT_THAT(op->SetKlCoef(0.1).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("ppo is not running")));
  ASSERT_OK(op->Stop().status());
  ASSERT_OK_AND_ASSIGN(
      a, processes.actor().GetAssignment(0, absl::ZeroDuration()));
  EXPECT_EQ(a.kind(), cox::v1::Assignment::STOP);
  EXPECT_EQ(coordinator_->ExitCode(), std::nullopt);  // they may still leave
}

TEST_F(ServiceTest, AKlCoefficientBeginsAtAStepBorderAndIsRecorded) {
  Start({"ppo.steps=5"});
  FakeProcesses processes(Client("actor"), Client("reward"), Client("learner"));
  ASSERT_OK(processes.Join());
  ASSERT_OK(processes.Drive(/*stop_after_step=*/1));
  auto op = Operator();
  EXPECT_THAT(
      op->SetKlCoef(-1).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at least 0")));
  // A rank may have the batch of step 2 by now.
  ASSERT_OK_AND_ASSIGN(const int64_t step, op->SetKlCoef(0.3));
  EXPECT_EQ(step, 3);
  coordinator_.reset();
  Start({"ppo.steps=5"});
  ASSERT_OK(processes.Drive(/*stop_after_step=*/3));
  ASSERT_OK(op->SetKlCoef(0.7).status());
  ASSERT_OK(op->SetKlCoef(1.0 / 3).status());  // the later one stays
  ASSERT_OK(processes.Drive(/*stop_after_step=*/-1));
  const std::map<int64_t, double> expected = {{3, 0.3}, {5, 1.0 / 3}};
  EXPECT_EQ(processes.kl_coefs(), expected);
  coordinator_.reset();
  ASSERT_OK_AND_ASSIGN(const RecordedRun run,
                       RecordedRun::Open(Fs::Real(), RunDir()));
  const KlCoefficients recorded(run.state().controls);
  EXPECT_EQ(recorded.At(1, 3), 0.3);
  EXPECT_EQ(recorded.At(1, 5), 1.0 / 3);
  EXPECT_EQ(recorded.At(1, 4), std::nullopt);
}

TEST_F(ServiceTest, ATracedCallContinuesTheCallersTrace) {
  Start({"log.trace=1"});
  auto actor = Client("actor");
  ASSERT_OK(actor->Register().status());
  std::string trace_id;
  std::string parent;
  {
    const TraceScope scope("generate", UnitTrace({1, 2, 3}), "s1.2.3");
    trace_id = scope.context().trace_id;
    parent = scope.context().span_id;
    ASSERT_OK(actor->ReturnUnits({}));
  }
  ASSERT_OK(actor->ReturnUnits({}));  // outside: not traced
  coordinator_.reset();
  ASSERT_OK_AND_ASSIGN(const std::string text,
                       Fs::Real().ReadAll(JoinPath(RunDir(), "trace.json")));
  EXPECT_THAT(text, HasSubstr(absl::StrCat("\"parent_id\":\"", parent, "\"")));
  const nlohmann::json events = nlohmann::json::parse(text);
  int found = 0;
  for (const auto& event : events) {
    if (event["name"] != "RolloutService.ReturnUnits") continue;
    ++found;
    EXPECT_EQ(event["args"]["trace_id"], trace_id);
  }
  EXPECT_EQ(found, 1);
}

TEST_F(ServiceTest, AWatcherSeesTheTargetWhenItIsPublished) {
  Start();
  FakeProcesses processes(Client("actor"), Client("reward"), Client("learner"));
  ASSERT_OK(processes.Join());
  ASSERT_OK_AND_ASSIGN(
      auto a, processes.learner().GetAssignment(0, absl::ZeroDuration()));
  ASSERT_OK(processes.LearnerTurn(a));
  std::string seen;
  ASSERT_OK(processes.actor().WatchVersions("policy",
                                            [&](const VersionSource& source) {
                                              seen = source.content_hash;
                                              return false;
                                            }));
  EXPECT_EQ(seen, Sha256Hex("initial weights"));
}

TEST(RoleTable, EveryMethodIsThereAndNobodyElseMay) {
  const google::protobuf::FileDescriptor* files[] = {
      cox::v1::RegisterRequest::descriptor()->file(),
      cox::v1::LeaseUnitsRequest::descriptor()->file(),
      cox::v1::TakeBatchRequest::descriptor()->file(),
      cox::v1::PublishVersionRequest::descriptor()->file(),
      cox::v1::BeginCheckpointRequest::descriptor()->file(),
      cox::v1::StatusRequest::descriptor()->file(),
      cox::v1::PauseRequest::descriptor()->file()};
  const std::map<std::string, std::set<std::string>> only = {
      {"RolloutService", {"actor"}},
      {"ExperienceService", {"learner"}},
      {"ControlService", {"operator"}}};
  int methods = 0;
  for (const auto* file : files) {
    const auto* service = file->service(0);
    for (int m = 0; m < service->method_count(); ++m, ++methods) {
      const std::string name =
          service->name() + "." + service->method(m)->name();
      int allowed = 0;
      for (const char* role :
           {"actor", "reward", "learner", "operator", "viewer"}) {
        const bool may = RoleMay(role, name);
        allowed += may ? 1 : 0;
        auto known = only.find(service->name());
        if (known != only.end()) {
          EXPECT_EQ(may, known->second.contains(role)) << name << " " << role;
        }
      }
      EXPECT_GT(allowed, 0) << name << " has no row";
      EXPECT_FALSE(RoleMay("", name));
      EXPECT_FALSE(RoleMay("coordinator", name));
    }
  }
  EXPECT_EQ(methods, 28);
  EXPECT_FALSE(RoleMay("operator", "RunService.NoSuchMethod"));
}

}  // namespace
}  // namespace cox
