#ifndef COX_COORDINATOR_EXPERIENCE_SERVICE_H_
#define COX_COORDINATOR_EXPERIENCE_SERVICE_H_

#include "coordinator/coordinator_service.h"
#include "cox/v1/experience.grpc.pb.h"

namespace cox {

class ExperienceServiceImpl final
    : public cox::v1::ExperienceService::CallbackService {
 public:
  explicit ExperienceServiceImpl(ServiceContext* service)
      : service_(*service) {}

  grpc::ServerWriteReactor<cox::v1::TakeBatchResponse>* TakeBatch(
      grpc::CallbackServerContext* context,
      const cox::v1::TakeBatchRequest* request) override;
  grpc::ServerUnaryReactor* CommitStep(
      grpc::CallbackServerContext* context,
      const cox::v1::CommitStepRequest* request,
      cox::v1::CommitStepResponse* response) override;

 private:
  ServiceContext& service_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_EXPERIENCE_SERVICE_H_
