#include "coordinator/coordinator_service.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "coordinator/checkpoint_service.h"
#include "coordinator/control_service.h"
#include "coordinator/experience_service.h"
#include "coordinator/monitor_service.h"
#include "coordinator/rollout_service.h"
#include "coordinator/run_service.h"
#include "coordinator/scaler_service.h"
#include "coordinator/stage_steps.h"
#include "coordinator/version_service.h"
#include "lib/base/failpoint.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/rpc/credentials.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/trace_metadata.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

// How long processes get to leave after the end of the run.
constexpr absl::Duration kDoneGrace = absl::Seconds(10);
constexpr absl::Duration kStopGrace = absl::Seconds(30);
constexpr absl::Duration kFailedGrace = absl::Seconds(5);

}  // namespace

absl::Status SessionBindings::Check(const std::string& session,
                                    const std::string& peer, bool binds) {
  MutexLock lock(&mutex_);
  const auto at = owner_.find(session);
  if (at == owner_.end()) {
    // A restart forgets; the session registers again before it may do more.
    if (binds) owner_.emplace(session, peer);
    return absl::OkStatus();
  }
  if (at->second == peer) return absl::OkStatus();
  return absl::PermissionDeniedError(
      "caller.session: it belongs to another certificate");
}

absl::Status Admit(const ServiceContext& service,
                   const grpc::ServerContextBase& context,
                   const cox::v1::Caller& caller, std::string_view method) {
  // The first contact learns the run id; every later call names it.
  const bool first = method == "RunService.Register" && caller.run_id().empty();
  COX_RETURN_IF_ERROR(
      CheckCall(context, caller, first ? std::string() : service.run->run_id));
  const std::string peer = PeerUriOf(context.auth_context().get());
  if (first && peer.empty()) {
    const std::string address = context.peer();
    const bool loopback =
        address.starts_with("ipv4:127.") || address.starts_with("ipv6:[::1]") ||
        address.starts_with("ipv6:%5B::1%5D") || address.starts_with("unix:");
    if (!loopback) {
      return absl::PermissionDeniedError("caller.run_id is empty");
    }
  }
  if (caller.session().size() > 64 || caller.name().size() > 256) {
    return absl::InvalidArgumentError("caller: session or name is too long");
  }
  if (!peer.empty() && !caller.session().empty()) {
    COX_RETURN_IF_ERROR(service.sessions.Check(
        caller.session(), peer, method == "RunService.Register"));
  }
  if (!RoleMay(caller.role(), method)) {
    return absl::PermissionDeniedError(
        absl::StrCat("role '", caller.role().substr(0, 32), "' may not call ",
                     std::string(method)));
  }
  return absl::OkStatus();
}

std::shared_ptr<OpenSpan> ServerSpan(const grpc::ServerContextBase& context,
                                     std::string_view method) {
  const TraceContext parent = TraceparentOf(context);
  return parent.traced() ? std::make_shared<OpenSpan>(method, parent, "")
                         : nullptr;
}

CoreCaller ToCore(const cox::v1::Caller& caller) {
  return {caller.session(), caller.role(), caller.name(), caller.epoch(),
          caller.generation()};
}

absl::Duration PollWait(const grpc::ServerContextBase& context,
                        int64_t wait_ms) {
  const absl::Duration wait = std::clamp(absl::Milliseconds(wait_ms),
                                         absl::ZeroDuration(), kMaxLongPoll);
  return std::max(absl::ZeroDuration(),
                  std::min(wait, TimeLeft(context) - absl::Milliseconds(50)));
}

Coordinator::Coordinator(Fs& fs, PreparedRun run, CoordinatorOptions options)
    : fs_(fs), run_(std::move(run)), options_(std::move(options)) {}

Coordinator::~Coordinator() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(
    Fs& fs, PreparedRun run, CoordinatorOptions options) {
  std::unique_ptr<Coordinator> coordinator(
      new Coordinator(fs, std::move(run), std::move(options)));
  COX_RETURN_IF_ERROR(coordinator->Init());
  return coordinator;
}

absl::Status Coordinator::Init() {
  const Clock& clock = *options_.core_host.clock;
  COX_ASSIGN_OR_RETURN(
      std::unique_ptr<CoordinatorCore> core,
      CoordinatorCore::Create(run_.core_options, *run_.plan, run_.state,
                              run_.ledger->epoch(), clock.Now()));
  run_.state = LedgerState();
  const cox::v1::RunConfig& config = run_.config;
  RunOutputsOptions outputs;
  outputs.run_dir = run_.run_dir;
  outputs.name = config.name();
  outputs.config_yaml = PrintConfig(config);
  outputs.seed = config.seed();
  outputs.label_by_people = config.collect().labeller() == "file";
  outputs.label_noise = config.collect().label_noise();
  outputs.heldout_fraction = config.collect().heldout_fraction();
  outputs.bootstrap = config.eval().bootstrap();
  outputs.samples_per_step = config.log().samples_per_step();
  outputs.tensorboard = config.log().tensorboard();
  outputs.steps_over_rows = [this](StageKind kind) {
    return StepsOverRows(fs_, run_.config, run_.run_dir, kind);
  };
  outputs.on_failure = [this](const std::string&, int code) {
    exit_code_ = code;
  };
  COX_ASSIGN_OR_RETURN(
      outputs_, RunOutputs::Open(fs_, std::move(outputs), run_.segments.get(),
                                 MakeDecode(run_.tokenizer), *core));
  // The ledger's rows are gone, the pages that held them should be too.
  malloc_trim(0);
  host_ = std::make_unique<CoreHost>(options_.core_host, std::move(core),
                                     std::move(run_.ledger),
                                     std::move(run_.segments));
  context_.host = host_.get();
  context_.run = &run_;
  context_.outputs = outputs_.get();
  context_.fs = &fs_;
  context_.start = Clock::Real().Now();
  if (config.log().trace() > 0) {
    TraceRecorder::Process().Enable(config.log().trace(), run_.run_id);
    COX_ASSIGN_OR_RETURN(
        traces_,
        TraceCollector::Open(fs_, JoinPath(run_.run_dir, "trace.json")));
    context_.traces = traces_.get();
  }
  host_->Start(this);
  return StartServers();
}

int Coordinator::RecordedPort() const {
  const absl::StatusOr<std::string> text =
      fs_.ReadAll(JoinPath(run_.run_dir, "endpoints.json"));
  if (!text.ok()) {
    return 0;
  }
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object() || !json.contains("coordinator") ||
      !json["coordinator"].is_string()) {
    return 0;
  }
  const std::string address = json["coordinator"].get<std::string>();
  int port = 0;
  const size_t colon = address.rfind(':');
  for (size_t i = colon + 1; colon != std::string::npos && i < address.size();
       ++i) {
    if (address[i] < '0' || address[i] > '9' || port > 65535) {
      return 0;
    }
    port = port * 10 + (address[i] - '0');
  }
  return port > 65535 ? 0 : port;
}

absl::Status Coordinator::StartServers() {
  services_.push_back(std::make_unique<RunServiceImpl>(&context_));
  services_.push_back(std::make_unique<RolloutServiceImpl>(&context_));
  services_.push_back(std::make_unique<ExperienceServiceImpl>(&context_));
  services_.push_back(std::make_unique<VersionServiceImpl>(&context_));
  services_.push_back(std::make_unique<CheckpointServiceImpl>(&context_));
  services_.push_back(std::make_unique<MonitorServiceImpl>(&context_));
  services_.push_back(std::make_unique<ControlServiceImpl>(&context_));
  services_.push_back(std::make_unique<ScalerServiceImpl>(&context_));
  RpcServerOptions options;
  for (const auto& service : services_) {
    options.services.push_back(service.get());
  }
  // Processes of a run that go on find the same address again.
  const int wanted = options_.port >= 0 ? options_.port : RecordedPort();
  options.bind = absl::StrCat(options_.host, ":", wanted);
  options.advertise = options_.advertise;
  absl::StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start(options);
  if (absl::IsUnavailable(server.status()) && options_.port > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--port ", options_.port, ": port in use"));
  }
  if (absl::IsUnavailable(server.status()) && wanted != 0) {
    options.bind = absl::StrCat(options_.host, ":0");
    server = RpcServer::Start(options);
  }
  COX_RETURN_IF_ERROR(server.status());
  server_ = *std::move(server);

  HttpServerOptions http;
  http.host = options_.http_host.empty() ? options_.host : options_.http_host;
  http.port = options_.http_port;
  http.ready = [this] { return !shut_down_ && host_->fatal().ok(); };
  http.metrics = [this] { return outputs_->metrics().Text(); };
  absl::StatusOr<std::unique_ptr<HttpServer>> started =
      HttpServer::Start(std::move(http));
  if (absl::IsUnavailable(started.status()) && options_.http_port > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--http-port ", options_.http_port, ": port in use"));
  }
  COX_RETURN_IF_ERROR(started.status());
  http_ = *std::move(started);
  if (options_.pod_deletion_costs) {
    COX_ASSIGN_OR_RETURN(KubeClient client, KubeClient::Create({}));
    pod_costs_ = std::make_unique<PodCostService>(
        host_.get(), std::move(client), absl::Seconds(1));
  }
  COX_RETURN_IF_ERROR(WriteEndpoints("serving"));
  HitFailpoint("endpoints.written");
  server_->SetServing(true);
  LogInfo("serving",
          {Field("address", server_->address()), Field("http", http_->port()),
           Field("run_id", run_.run_id)});
  return absl::OkStatus();
}

absl::Status Coordinator::WriteEndpoints(std::string_view state) {
  nlohmann::ordered_json json;
  json["coordinator"] = server_->address();
  json["http"] = absl::StrCat(
      options_.http_host.empty() ? options_.host : options_.http_host, ":",
      http_->port());
  json["pid"] = getpid();
  json["run_id"] = run_.run_id;
  json["state"] = state;
  return WriteFileDurably(fs_, JoinPath(run_.run_dir, "endpoints.json"),
                          json.dump(2) + "\n");
}

void Coordinator::OnEffect(CoordinatorCore& core, const Effect& effect) {
  outputs_->OnEffect(core, effect);
}

absl::StatusOr<std::string> Coordinator::MakePlaceholder(
    const UnitId& unit, const std::string& policy_hash, int64_t version_step) {
  return run_.prompts->Placeholder(unit, policy_hash, version_step);
}

void Coordinator::OnTick(CoordinatorCore& core) {
  outputs_->OnTick(core);
  if (traces_ != nullptr) {
    // A full queue is no loss: the next tick tries again.
    (void)host_->PostIo([this] { traces_->Flush(); });
  }
  if (exit_code_ < 0 && (core.done() || core.draining())) {
    complete_ = core.done();
    exit_code_ = kExitDone;
  }
  if (exit_code_ < 0) {
    return;
  }
  const MonoTime now = Clock::Real().Now();
  int64_t expected = 0;
  if (ended_ns_ == 0) {
    const absl::Duration grace = exit_code_ != kExitDone ? kFailedGrace
                                 : core.done()           ? kDoneGrace
                                                         : kStopGrace;
    ended_ns_.compare_exchange_strong(expected, (now + grace).ns);
  }
  if (core.live_sessions() == 0) {
    ended_ns_ = std::min<int64_t>(ended_ns_, now.ns);
  }
}

std::optional<int> Coordinator::ExitCode() const {
  if (!host_->fatal().ok()) {
    return kExitRetryable;
  }
  const int code = exit_code_;
  const int64_t ended = ended_ns_;
  if (code < 0 || ended == 0 || Clock::Real().Now().ns < ended) {
    return std::nullopt;
  }
  return code;
}

void Coordinator::Shutdown(absl::Duration grace) {
  if (shut_down_.exchange(true) || host_ == nullptr) {
    return;
  }
  if (server_ != nullptr) {
    server_->SetServing(false);
  }
  pod_costs_.reset();
  host_->StopParking();
  if (server_ != nullptr) {
    server_->Shutdown(grace);
  }
  host_->Stop();
  if (traces_ != nullptr) traces_->Close();
  if (server_ != nullptr && http_ != nullptr) {
    // Who started this process must tell the end of a run from a drain, which
    // have one exit code.
    absl::Status status = WriteEndpoints(complete_ ? "done" : "stopped");
    if (!status.ok()) {
      LogWarning("endpoints.json",
                 {Field("status", std::string(status.message()))});
    }
  }
  http_.reset();
}

}  // namespace cox
