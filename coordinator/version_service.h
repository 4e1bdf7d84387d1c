#ifndef COX_COORDINATOR_VERSION_SERVICE_H_
#define COX_COORDINATOR_VERSION_SERVICE_H_

#include "coordinator/coordinator_service.h"
#include "cox/v1/version.grpc.pb.h"

namespace cox {

class VersionServiceImpl final
    : public cox::v1::VersionService::CallbackService {
 public:
  explicit VersionServiceImpl(ServiceContext* service) : service_(*service) {}

  grpc::ServerUnaryReactor* PublishVersion(
      grpc::CallbackServerContext* context,
      const cox::v1::PublishVersionRequest* request,
      cox::v1::PublishVersionResponse* response) override;
  grpc::ServerWriteReactor<cox::v1::VersionSource>* WatchVersions(
      grpc::CallbackServerContext* context,
      const cox::v1::WatchVersionsRequest* request) override;
  grpc::ServerUnaryReactor* ReportHeld(
      grpc::CallbackServerContext* context,
      const cox::v1::ReportHeldRequest* request,
      cox::v1::ReportHeldResponse* response) override;

 private:
  ServiceContext& service_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_VERSION_SERVICE_H_
