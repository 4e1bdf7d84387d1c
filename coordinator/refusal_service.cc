#include "coordinator/refusal_service.h"

#include <algorithm>
#include <utility>

#include "cox/v1/run.grpc.pb.h"
#include "lib/base/process.h"
#include "lib/rpc/status_convert.h"

namespace cox {
namespace {

class RefusingRunService final : public v1::RunService::CallbackService {
 public:
  explicit RefusingRunService(absl::Status why) : why_(std::move(why)) {}

  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context,
                                     const v1::RegisterRequest* request,
                                     v1::RegisterResponse* /*response*/) final {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const absl::Status admitted =
        CheckCall(*context, request->caller(), /*run_id=*/"");
    reactor->Finish(ToGrpc(admitted.ok() ? why_ : admitted));
    return reactor;
  }

 private:
  const absl::Status why_;
};

// Of the two codes that no client takes for something else: a NOT_FOUND would
// look like a session that ended.
absl::Status OnTheWire(const absl::Status& why) {
  const std::string text = absl::StrCat("the coordinator cannot start: ",
                                        std::string(why.message()));
  return ExitCodeFor(why) == kExitNeedsPerson
             ? absl::DataLossError(text)
             : absl::InvalidArgumentError(text);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Refusal>> Refusal::Start(
    const absl::Status& why, const CoordinatorOptions& options) {
  std::unique_ptr<Refusal> refusal(new Refusal());
  refusal->service_ = std::make_unique<RefusingRunService>(OnTheWire(why));
  COX_ASSIGN_OR_RETURN(
      refusal->server_,
      RpcServer::Start(
          {.bind = absl::StrCat(options.host, ":", std::max(options.port, 0)),
           .services = {refusal->service_.get()},
           .advertise = options.advertise,
           .tls = nullptr}));
  COX_ASSIGN_OR_RETURN(
      refusal->http_,
      HttpServer::Start(
          {.host = options.http_host.empty() ? options.host : options.http_host,
           .port = options.http_port,
           .ready = [] { return false; },
           .metrics = nullptr,
           .pages = {}}));
  return refusal;
}

Refusal::~Refusal() {
  if (server_ != nullptr) {
    server_->Shutdown(absl::Seconds(2));
  }
}

}  // namespace cox
