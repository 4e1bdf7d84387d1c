#ifndef COX_COORDINATOR_COORDINATOR_SERVICE_H_
#define COX_COORDINATOR_COORDINATOR_SERVICE_H_

// The coordinator as a whole: core thread, gRPC services, HTTP port.
//
//   main --> Coordinator --owns--> RpcServer --> *Service --> CoreHost --> core
//                           \----> HttpServer                     \--> outputs

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/core_host.h"
#include "coordinator/pod_cost_service.h"
#include "coordinator/run_outputs.h"
#include "coordinator/run_setup.h"
#include "coordinator/trace_collector.h"
#include "cox/v1/types.pb.h"
#include "grpcpp/impl/codegen/service_type.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/sync.h"
#include "lib/metrics/trace_recorder.h"
#include "lib/rpc/authorization.h"
#include "lib/rpc/http_server.h"
#include "lib/rpc/identity.h"
#include "lib/rpc/server.h"
#include "lib/rpc/status_convert.h"

namespace cox {

// Which certificate a session was registered with. Thread-safe.
class SessionBindings {
 public:
  // `peer`: identity in the certificate. `binds`: the call registers the
  // session. PERMISSION_DENIED when it belongs to another certificate.
  absl::Status Check(const std::string& session, const std::string& peer,
                     bool binds);

 private:
  Mutex mutex_;
  std::unordered_map<std::string, std::string> owner_ ABSL_GUARDED_BY(mutex_);
};

// What handlers use; outlives the server.
struct ServiceContext {
  CoreHost* host = nullptr;
  const PreparedRun* run = nullptr;
  RunOutputs* outputs = nullptr;
  Fs* fs = nullptr;
  MonoTime start;
  // Bytes of units that are being received, over all streams.
  std::atomic<int64_t> receiving_bytes{0};
  mutable SessionBindings sessions;
  TraceCollector* traces = nullptr;  // null while log.trace is 0
};

// The span of a traced call at this end; null for one that is not traced.
std::shared_ptr<OpenSpan> ServerSpan(const grpc::ServerContextBase& context,
                                     std::string_view method);

// Deadline present, run id right, role allowed (lib/rpc/authorization.h); with
// TLS also: the caller is who its certificate says, in its own session.
absl::Status Admit(const ServiceContext& service,
                   const grpc::ServerContextBase& context,
                   const cox::v1::Caller& caller, std::string_view method);

CoreCaller ToCore(const cox::v1::Caller& caller);
inline absl::Status BusyError() {
  return absl::UnavailableError("the coordinator is busy or going down");
}
// A long poll's wait: at most 30 s, and less than the call's deadline.
absl::Duration PollWait(const grpc::ServerContextBase& context,
                        int64_t wait_ms);

// Answers a unary call from the core thread, after the commit.
// `fn(core) -> absl::Status` fills in the response.
template <typename Fn>
grpc::ServerUnaryReactor* RunUnary(ServiceContext& service,
                                   grpc::CallbackServerContext* context,
                                   const cox::v1::Caller& caller,
                                   std::string_view method, Fn fn) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status admitted = Admit(service, *context, caller, method);
  if (!admitted.ok()) {
    reactor->Finish(ToGrpc(admitted));
    return reactor;
  }
  CoreHost* host = service.host;
  const bool posted = host->Post([host, reactor, fn = std::move(fn),
                                  span = ServerSpan(*context, method)] {
    const absl::Status status = fn(host->core());
    host->AfterCommit([reactor, status, span](const absl::Status& committed) {
      if (span != nullptr) span->End();
      reactor->Finish(ToGrpc(committed.ok() ? status : committed));
    });
  });
  if (!posted) {
    reactor->Finish(ToGrpc(BusyError()));
  }
  return reactor;
}

// The same for a long poll: `fn(core) -> absl::StatusOr<bool>`, false = not
// yet; asked again after the changes `awaits` (of enum Change). When the time
// is over the response goes out as it is.
template <typename Fn>
grpc::ServerUnaryReactor* RunPoll(ServiceContext& service,
                                  grpc::CallbackServerContext* context,
                                  const cox::v1::Caller& caller,
                                  std::string_view method, int64_t wait_ms,
                                  unsigned awaits, Fn fn) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status admitted = Admit(service, *context, caller, method);
  if (!admitted.ok()) {
    reactor->Finish(ToGrpc(admitted));
    return reactor;
  }
  CoreHost* host = service.host;
  const absl::Duration wait = PollWait(*context, wait_ms);
  const bool posted = host->Post([host, reactor, context, wait, awaits,
                                  session = caller.session(),
                                  fn = std::move(fn)] {
    const auto gone = [context] { return context->IsCancelled(); };
    const auto attempt = [host, reactor, context, session, fn](bool expired) {
      // A caller that is gone must not be given anything, e.g. a lease.
      absl::StatusOr<bool> answered = absl::CancelledError("caller is gone");
      if (context->IsCancelled()) {
        host->core().CallerGone(session);
      } else {
        answered = fn(host->core());
      }
      if (answered.ok() && !*answered && !expired) {
        return false;
      }
      host->AfterCommit(
          [reactor, status = answered.status()](const absl::Status& committed) {
            reactor->Finish(ToGrpc(committed.ok() ? status : committed));
          });
      return true;
    };
    host->Park(wait, attempt, gone, awaits);
  });
  if (!posted) {
    reactor->Finish(ToGrpc(BusyError()));
  }
  return reactor;
}

struct CoordinatorOptions {
  std::string host = "127.0.0.1";  // to listen on
  std::string advertise;           // host that others reach; "" = `host`
  std::string http_host;           // of probes and metrics; "" = `host`
  int port = -1;  // -1 = as recorded in endpoints.json if free, else any
  int http_port = 0;
  // Tell the cluster which actor pods are idle (pod_cost_service.h).
  bool pod_deletion_costs = false;
  CoreHostOptions core_host;
};

// Thread-safe after Start.
class Coordinator : public EffectHandler {
 public:
  // Serves when it returns. INVALID_ARGUMENT: `port` is in use.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(
      Fs& fs, PreparedRun run, CoordinatorOptions options);
  ~Coordinator() override;
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  const std::string& address() const { return server_->address(); }
  int http_port() const { return http_->port(); }
  const std::string& run_id() const { return run_.run_id; }
  // Exit code once the run has ended and its processes have left, or have had
  // their time to: 0 done or stopped, 43 failed, 42 ledger lost.
  std::optional<int> ExitCode() const;
  // Answers what is parked, lets calls finish for `grace`, closes the ledger.
  // Idempotent.
  void Shutdown(absl::Duration grace);

  // EffectHandler, on the core thread.
  void OnEffect(CoordinatorCore& core, const Effect& effect) override;
  void OnTick(CoordinatorCore& core) override;
  absl::StatusOr<std::string> MakePlaceholder(const UnitId& unit,
                                              const std::string& policy_hash,
                                              int64_t version_step) override;

 private:
  Coordinator(Fs& fs, PreparedRun run, CoordinatorOptions options);
  absl::Status Init();
  absl::Status StartServers();
  absl::Status WriteEndpoints(std::string_view state);
  int RecordedPort() const;

  Fs& fs_;
  PreparedRun run_;
  const CoordinatorOptions options_;
  ServiceContext context_;
  std::unique_ptr<CoreHost> host_;
  std::unique_ptr<RunOutputs> outputs_;
  std::unique_ptr<TraceCollector> traces_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<PodCostService> pod_costs_;  // null: not asked for
  std::atomic<bool> shut_down_{false};
  std::atomic<int> exit_code_{-1};     // -1 = goes on
  std::atomic<bool> complete_{false};  // all stages are done
  std::atomic<int64_t> ended_ns_{0};
};

}  // namespace cox

#endif  // COX_COORDINATOR_COORDINATOR_SERVICE_H_
