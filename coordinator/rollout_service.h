#ifndef COX_COORDINATOR_ROLLOUT_SERVICE_H_
#define COX_COORDINATOR_ROLLOUT_SERVICE_H_

#include "coordinator/coordinator_service.h"
#include "cox/v1/rollout.grpc.pb.h"

namespace cox {

class RolloutServiceImpl final
    : public cox::v1::RolloutService::CallbackService {
 public:
  explicit RolloutServiceImpl(ServiceContext* service) : service_(*service) {}

  grpc::ServerUnaryReactor* LeaseUnits(
      grpc::CallbackServerContext* context,
      const cox::v1::LeaseUnitsRequest* request,
      cox::v1::LeaseUnitsResponse* response) override;
  grpc::ServerUnaryReactor* RenewLease(
      grpc::CallbackServerContext* context,
      const cox::v1::RenewLeaseRequest* request,
      cox::v1::RenewLeaseResponse* response) override;
  grpc::ServerReadReactor<cox::v1::SubmitUnitRequest>* SubmitUnit(
      grpc::CallbackServerContext* context,
      cox::v1::SubmitUnitResponse* response) override;
  grpc::ServerUnaryReactor* ReturnUnits(
      grpc::CallbackServerContext* context,
      const cox::v1::ReturnUnitsRequest* request,
      cox::v1::ReturnUnitsResponse* response) override;

 private:
  ServiceContext& service_;
};

}  // namespace cox

#endif  // COX_COORDINATOR_ROLLOUT_SERVICE_H_
