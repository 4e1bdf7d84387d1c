#include "reward/replica_service.h"

#include <utility>
#include <vector>

#include "lib/base/fs.h"
#include "lib/base/log.h"
#include "lib/metrics/trace_recorder.h"
#include "lib/rpc/engine_settings.h"
#include "lib/rpc/weight_fetcher.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr absl::Duration kAssignmentPoll = absl::Seconds(5);
// Between two tries to get a model that nobody can serve yet.
constexpr absl::Duration kModelRetry = absl::Milliseconds(200);
// Without a byte of a model for this long, counted between streams.
constexpr absl::Duration kFetchPatience = absl::Seconds(1);
// Open calls may take this long when the process leaves.
constexpr absl::Duration kDrainGrace = absl::Seconds(10);

CoordinatorClientOptions AsReward(CoordinatorClientOptions options) {
  options.role = "reward";
  return options;
}

}  // namespace

RewardReplica::RewardReplica(RewardReplicaOptions options)
    : options_(std::move(options)),
      client_(AsReward(options_.coordinator)),
      weight_service_(&store_, {.run_id = [this] { return backend_.run_id(); },
                                .on_chunk = nullptr}) {}

RewardReplica::~RewardReplica() = default;

void RewardReplica::Stop() {
  stop_.Notify();
  client_.StopWaiting();
}

absl::Status RewardReplica::Run() {
  absl::Status status = Start();
  if (status.ok()) status = Serve();
  Leave();
  if (absl::IsCancelled(status) && stop_.HasBeenNotified()) {
    return absl::OkStatus();
  }
  return status;
}

absl::Status RewardReplica::Start() {
  // Served first, because Register tells the coordinator the address; handlers
  // answer UNAVAILABLE until the backend is attached.
  COX_ASSIGN_OR_RETURN(
      server_,
      RpcServer::Start({.bind = options_.bind,
                        .services = {&reward_service_, &reference_service_,
                                     &weight_service_},
                        .advertise = options_.advertise,
                        .tls = nullptr}));
  client_.set_own_address(server_->address());
  COX_ASSIGN_OR_RETURN(
      http_,
      HttpServer::Start({.host = options_.http_host,
                         .port = options_.http_port,
                         .ready = [this] { return backend_.Get() != nullptr; },
                         .metrics = [this] { return Metrics(); },
                         .pages = {}}));
  COX_ASSIGN_OR_RETURN(const v1::RegisterResponse run, client_.Register());
  const v1::RunConfig config = run.config();
  TraceRecorder::Process().Enable(config.log().trace(),
                                  client_.caller().run_id);
  COX_ASSIGN_OR_RETURN(ScoreEngineSet engines,
                       options_.setup_engines(EngineOptionsOf(config)));
  if (!engines.numerics_class.empty()) {
    client_.set_numerics_class(engines.numerics_class);
    COX_RETURN_IF_ERROR(client_.Register().status());
  }
  COX_ASSIGN_OR_RETURN(
      RewardRules rules,
      LoadRewardRules(Fs::Real(), {.kind = config.reward().kind(),
                                   .table_path = config.reward().path(),
                                   .lexicon_path = config.reward().lexicon()}));
  driver_ = std::make_unique<EngineDriver>(std::move(engines.make),
                                           options_.queue_capacity);
  backend_.Attach({.run_id = client_.caller().run_id,
                   .rules = std::move(rules),
                   .driver = driver_.get()});
  heartbeater_ = std::make_unique<Heartbeater>(
      &client_, absl::Seconds(config.limits().heartbeat_s()),
      [this] { Stop(); });
  server_->SetServing(true);
  LogInfo("reward replica serves", {{"address", server_->address()},
                                    {"kind", config.reward().kind()},
                                    Field("http_port", http_->port())});
  return absl::OkStatus();
}

absl::Status RewardReplica::Serve() {
  int64_t serial = 0;
  while (!stop_.HasBeenNotified()) {
    heartbeater_->SetState("serving");
    COX_ASSIGN_OR_RETURN(v1::Assignment assignment,
                         client_.GetAssignment(serial, kAssignmentPoll));
    if (assignment.kind() == v1::Assignment::DONE ||
        assignment.kind() == v1::Assignment::STOP) {
      return absl::OkStatus();
    }
    if (assignment.serial() == serial) continue;
    const absl::Status held = HoldModels(assignment);
    if (held.ok()) {
      serial = assignment.serial();
    } else if (absl::IsUnavailable(held) || absl::IsDeadlineExceeded(held)) {
      // The publisher may be gone; a newer assignment names another one.
      LogWarning("cannot get a model yet", {{"error", held.ToString()}});
      stop_.WaitFor(kModelRetry);
    } else {
      return held;
    }
  }
  return absl::OkStatus();
}

absl::Status RewardReplica::HoldModels(const v1::Assignment& assignment) {
  std::vector<std::string> wanted;
  for (const v1::VersionSource& model : assignment.models()) {
    COX_ASSIGN_OR_RETURN(const VersionSource source, FromProto(model));
    COX_RETURN_IF_ERROR(HoldModel(source));
    wanted.push_back(source.content_hash);
  }
  // An assignment without models (a stage that needs none) drops nothing: the
  // next one may want the same.
  if (wanted.empty()) return absl::OkStatus();
  store_.Keep(wanted);
  heartbeater_->SetHeld(wanted);
  return client_.ReportHeld(wanted, server_->address());
}

absl::Status RewardReplica::HoldModel(const VersionSource& source) {
  ModelSlot slot;
  if (source.model == "reward") {
    slot = ModelSlot::kReward;
  } else if (source.model == "reference") {
    slot = ModelSlot::kReference;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("assignment.models: expected reward or reference, found '",
                     source.model, "'"));
  }
  if (driver_->Held(slot) == source.content_hash) return absl::OkStatus();
  std::shared_ptr<const Snapshot> snapshot = store_.Get(source.content_hash);
  if (snapshot == nullptr) {
    heartbeater_->SetState(absl::StrCat("fetching ", source.model),
                           "WeightService");
    FetchOptions fetch;
    fetch.caller = client_.caller();
    fetch.deadline = absl::Minutes(2);
    // Then the assignment is asked for again: its sources are newer.
    fetch.patience = kFetchPatience;
    fetch.sleep = [this](absl::Duration d) { return stop_.WaitFor(d); };
    COX_ASSIGN_OR_RETURN(snapshot, FetchSnapshot(source, fetch));
    store_.Put(snapshot);
  }
  COX_RETURN_IF_ERROR(
      Annotate(driver_->Load(slot, snapshot), "load " + source.model));
  LogInfo("model loaded", {{"model", source.model},
                           {"version", source.version.ToString()},
                           {"hash", source.content_hash}});
  return absl::OkStatus();
}

void RewardReplica::Leave() {
  if (server_ != nullptr) server_->SetServing(false);
  // Queued requests are answered (their callers go to another replica), the
  // one that runs finishes; then no handler is left to wait for.
  if (driver_ != nullptr) driver_->Close();
  if (server_ != nullptr) server_->Shutdown(kDrainGrace);
  heartbeater_.reset();
  if (driver_ != nullptr) {
    const absl::Status drained = client_.Drain("leaving");
    if (!drained.ok()) {
      LogInfo("coordinator was not told", {{"error", drained.ToString()}});
    }
  }
  http_.reset();
}

std::string RewardReplica::Metrics() const {
  std::string text;
  const auto add = [&text](std::string_view name, uint64_t value) {
    const std::string n(name);
    absl::StrAppend(&text, "# TYPE ", n, " counter\n", n, " ", value, "\n");
  };
  add("cox_reward_sequences_scored_total", backend_.sequences_scored);
  add("cox_reward_sequences_excluded_total", backend_.sequences_excluded);
  add("cox_reward_sequences_referenced_total", backend_.sequences_referenced);
  add("cox_reward_requests_refused_total", backend_.requests_refused);
  const auto backend = backend_.Get();
  absl::StrAppend(&text, "# TYPE cox_reward_queue gauge\ncox_reward_queue ",
                  backend == nullptr ? 0 : backend->driver->queued(), "\n",
                  "# TYPE cox_resident_bytes gauge\ncox_resident_bytes ",
                  ResidentBytes(), "\n");
  return text;
}

}  // namespace cox
