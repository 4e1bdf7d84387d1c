#ifndef COX_COORDINATOR_REFUSAL_SERVICE_H_
#define COX_COORDINATOR_REFUSAL_SERVICE_H_

// In a coordinator's place when there can be none before a person has looked:
// bad configuration, damaged record. Whoever registers is told why and ends
// with the exit code of `why` (2 or 43), which fails the JobSet of the learners
// instead of having it wait and restart for ever. /livez is well, /readyz is
// not.

#include <memory>

#include "coordinator/coordinator_service.h"
#include "lib/rpc/http_server.h"
#include "lib/rpc/server.h"

namespace cox {

// Thread-safe. Refuses from Start until it is destroyed.
class Refusal {
 public:
  // Takes the ports of `options`. UNAVAILABLE: one is taken.
  static absl::StatusOr<std::unique_ptr<Refusal>> Start(
      const absl::Status& why, const CoordinatorOptions& options);
  ~Refusal();
  Refusal(const Refusal&) = delete;
  Refusal& operator=(const Refusal&) = delete;
  int port() const { return server_->port(); }

 private:
  Refusal() = default;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_REFUSAL_SERVICE_H_
