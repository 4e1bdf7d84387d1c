#include "learner/learner_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/train_loop_service.h"
#include "lib/base/log.h"
#include "lib/comm/nccl_api.h"
#include "lib/config/config.h"
#include "lib/data/chat_template.h"
#include "lib/metrics/trace_recorder.h"
#include "lib/rpc/engine_settings.h"
#include "lib/rpc/error_reason.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr absl::Duration kPoll = absl::Seconds(10);
constexpr absl::Duration kDrainGrace = absl::Seconds(2);

CoordinatorClientOptions AsLearner(CoordinatorClientOptions options, int rank) {
  options.role = "learner";
  options.rank = rank;
  return options;
}

}  // namespace

Learner::Learner(LearnerOptions options)
    : options_(std::move(options)),
      client_(AsLearner(options_.coordinator, options_.rank)),
      weight_service_(&store_,
                      {.run_id = [this] { return client_.caller().run_id; },
                       .on_chunk = nullptr}) {}

Learner::~Learner() = default;

void Learner::Stop() {
  stop_.Notify();
  client_.StopWaiting();
}

absl::Status Learner::Run() {
  absl::Status status = Start();
  if (status.ok()) {
    status = Work();
  }
  if (heartbeater_ != nullptr) {
    heartbeater_->SetState("leaving");
  }
  if (!absl::IsUnavailable(status)) {
    // Only courtesy: silence says the same a few seconds later.
    static_cast<void>(client_.Drain(status.ok() ? "done" : "leaving"));
  }
  stop_.Notify();
  client_.StopWaiting();
  heartbeater_ = nullptr;
  if (group_ != nullptr && !status.ok()) {
    group_->Abort();
  }
  weight_groups_.Close();
  if (server_ != nullptr) {
    server_->Shutdown(kDrainGrace);
  }
  return status;
}

absl::Status Learner::Start() {
  COX_ASSIGN_OR_RETURN(
      server_,
      RpcServer::Start({.bind = options_.bind,
                        .services = {&weight_service_, &weight_groups_},
                        .advertise = options_.advertise,
                        .tls = nullptr}));
  client_.set_own_address(server_->address());
  COX_ASSIGN_OR_RETURN(
      http_, HttpServer::Start({.host = options_.http_host,
                                .port = options_.http_port,
                                .ready = nullptr,
                                .metrics = [this] { return Metrics(); },
                                .pages = {}}));
  COX_ASSIGN_OR_RETURN(v1::RegisterResponse run, client_.Register());
  COX_ASSIGN_OR_RETURN(LearnerEngineSet engines,
                       options_.setup_engines(EngineOptionsOf(run.config())));
  if (!engines.numerics_class.empty()) {
    client_.set_numerics_class(engines.numerics_class);
    COX_ASSIGN_OR_RETURN(run, client_.Register());
  }
  if (options_.world_size == 0) {
    options_.world_size = run.config().roles().learners();
  }
  if (options_.rank < 0 || options_.rank >= options_.world_size) {
    return absl::InvalidArgumentError(absl::StrCat("--rank: expected 0 to ",
                                                   options_.world_size - 1,
                                                   ", found ", options_.rank));
  }
  TraceRecorder::Process().Enable(run.config().log().trace(),
                                  client_.caller().run_id);
  config_hash_ = run.config_hash();
  context_.config = run.config();
  context_.eos_ids.assign(run.eos_ids().begin(), run.eos_ids().end());
  context_.pad_id = run.pad_id();
  context_.vocab_size = run.vocab_size();
  context_.fs = options_.fs;
  context_.make_engine = std::move(engines.make_engine);
  context_.fetch_file =
      [this](const std::string& name) -> absl::StatusOr<std::string> {
    COX_ASSIGN_OR_RETURN(FetchedFile file, client_.FetchFile(name));
    return std::move(file.bytes);
  };
  heartbeater_ = std::make_unique<Heartbeater>(
      &client_, absl::Seconds(run.config().limits().heartbeat_s()),
      [this] { stop_.Notify(); });
  COX_RETURN_IF_ERROR(FetchTokenizer(run));
  if (SendsOverNccl()) {
    COX_RETURN_IF_ERROR(Annotate(CheckNccl(), "roles.weight_transport nccl"));
  }
  server_->SetServing(true);
  COX_RETURN_IF_ERROR(JoinGroup());
  if (SendsOverNccl()) {
    weight_groups_.Open({.run_id = client_.caller().run_id,
                         .generation = generation_,
                         .timeout = absl::Seconds(
                             run.config().limits().weight_group_timeout_s())});
  }
  LogInfo("learner runs", {{"address", server_->address()},
                           {"numerics", engines.numerics_class},
                           Field("rank", options_.rank),
                           Field("world", options_.world_size),
                           Field("generation", generation_)});
  return absl::OkStatus();
}

absl::Status Learner::FetchTokenizer(const v1::RegisterResponse& run) {
  if (run.tokenizer_sha256().empty()) {
    return absl::OkStatus();
  }
  COX_ASSIGN_OR_RETURN(const FetchedFile file,
                       client_.FetchFile("tokenizer.json"));
  if (file.sha256 != run.tokenizer_sha256()) {
    return absl::DataLossError(absl::StrCat("tokenizer.json: expected SHA-256 ",
                                            run.tokenizer_sha256(), ", found ",
                                            file.sha256));
  }
  COX_ASSIGN_OR_RETURN(context_.tokenizer, Tokenizer::FromJson(file.bytes));
  absl::StatusOr<FetchedFile> config =
      client_.FetchFile("tokenizer_config.json");
  if (absl::IsNotFound(config.status())) {
    return absl::OkStatus();  // neither model.init nor the run has one
  }
  COX_RETURN_IF_ERROR(config.status());
  COX_ASSIGN_OR_RETURN(context_.chat, ReadChatTemplate(config->bytes));
  context_.tokenizer_config = std::move(config->bytes);
  return absl::OkStatus();
}

absl::Status Learner::Work() {
  int64_t serial = 0;
  while (!stop_.HasBeenNotified()) {
    heartbeater_->SetState("waiting for an assignment", "coordinator");
    COX_ASSIGN_OR_RETURN(const v1::Assignment assignment,
                         client_.GetAssignment(serial, kPoll));
    if (assignment.serial() == serial) {
      continue;
    }
    serial = assignment.serial();
    switch (assignment.kind()) {
      case v1::Assignment::TRAIN:
        COX_RETURN_IF_ERROR(Train(assignment));
        break;
      case v1::Assignment::SERVE:
        if (options_.rank == 0) {
          COX_RETURN_IF_ERROR(PublishOrders(assignment));
          KeepOnly(nullptr);
        }
        heartbeater_->SetState("serving weights");
        break;
      case v1::Assignment::DONE:
        return absl::OkStatus();
      case v1::Assignment::STOP:
        return absl::CancelledError("the coordinator drains the run");
      default:
        break;
    }
  }
  // The heartbeat's "stop" may mean that the run is complete.
  const absl::StatusOr<v1::Assignment> last =
      client_.GetAssignment(0, absl::ZeroDuration());
  if (last.ok() && last->kind() == v1::Assignment::DONE) {
    return absl::OkStatus();
  }
  return absl::CancelledError("stopped");
}

absl::Status Learner::PublishOrders(const v1::Assignment& assignment) {
  for (const v1::PublishOrder& order : assignment.publish()) {
    COX_ASSIGN_OR_RETURN(const PolicyVersion version,
                         FromProto(order.ref().version()));
    const std::string& model = order.ref().model();
    if (ordered_.contains({model, version})) {
      continue;
    }
    heartbeater_->SetState(
        absl::StrCat("loading ", model, " ", version.ToString()));
    COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> snapshot,
                         OrderedModel(context_, order));
    COX_RETURN_IF_ERROR(Publish(model, version, snapshot));
    ordered_[{model, version}] = snapshot->content_hash;
  }
  // Orders that are gone are no longer served.
  std::erase_if(ordered_, [&](const auto& entry) {
    for (const v1::PublishOrder& order : assignment.publish()) {
      const absl::StatusOr<PolicyVersion> version =
          FromProto(order.ref().version());
      if (version.ok() && entry.first.first == order.ref().model() &&
          entry.first.second == *version) {
        return false;
      }
    }
    return true;
  });
  return absl::OkStatus();
}

absl::Status Learner::Publish(const std::string& model,
                              const PolicyVersion& version,
                              const std::shared_ptr<const Snapshot>& snapshot,
                              const std::vector<float>& canary) {
  store_.Put(snapshot);
  heartbeater_->SetHeld(store_.Held());
  VersionSource source;
  source.model = model;
  source.version = version;
  source.content_hash = snapshot->content_hash;
  source.manifest = snapshot->manifest.CanonicalText();
  source.canary = canary;
  // The other models are fetched once, by rewards.
  if (SendsOverNccl() && model == "policy") {
    source.group.address = server_->address();
  }
  COX_RETURN_IF_ERROR(client_.PublishVersion(source, server_->address()));
  LogInfo("version published", {{"model", model},
                                {"version", version.ToString()},
                                {"hash", snapshot->content_hash}});
  return absl::OkStatus();
}

absl::Status Learner::ShareVerdict(const absl::Status& of_rank_zero) {
  int32_t code = static_cast<int32_t>(of_rank_zero.code());
  COX_RETURN_IF_ERROR(group_->Broadcast(
      std::as_writable_bytes(std::span<int32_t>(&code, 1)), /*root=*/0));
  if (options_.rank == 0) {
    return of_rank_zero;
  }
  return code == 0 ? absl::OkStatus()
                   : absl::Status(static_cast<absl::StatusCode>(code),
                                  "rank 0 could not end the step");
}

std::string Learner::Metrics() const {
  std::string text;
  absl::StrAppend(&text, "cox_learner_weight_groups_total ",
                  weight_groups_.groups_sent(),
                  "\ncox_learner_weight_groups_failed_total ",
                  weight_groups_.groups_failed(), "\n");
  MutexLock lock(&mutex_);
  for (const auto& [name, value] : last_metrics_) {
    std::string flat = "cox_learner_" + name;
    for (char& c : flat) {
      if (c == '/') {
        c = '_';
      }
    }
    absl::StrAppend(&text, flat, " ", value, "\n");
  }
  return text;
}

}  // namespace cox
