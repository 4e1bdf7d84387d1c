#include "coordinator/scaler_service.h"

#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "tests/coordinator/service_testing.h"

namespace cox {
namespace {

using ScalerServiceTest = ServiceTest;

// As KEDA calls: no deadline, no Caller.
TEST_F(ScalerServiceTest, SaysHowManyActorsAreOfUse) {
  Start();
  auto stub = externalscaler::ExternalScaler::NewStub(grpc::CreateChannel(
      coordinator_->address(), grpc::InsecureChannelCredentials()));
  externalscaler::ScaledObjectRef object;
  object.set_name("actor");
  const auto wanted = [&](const std::string& metric) -> int64_t {
    grpc::ClientContext context;
    externalscaler::GetMetricsRequest request;
    *request.mutable_scaledobjectref() = object;
    request.set_metricname(metric);
    externalscaler::GetMetricsResponse response;
    if (!stub->GetMetrics(&context, request, &response).ok()) return -1;
    return response.metricvalues(0).metricvalue();
  };
  {
    grpc::ClientContext context;
    externalscaler::GetMetricSpecResponse spec;
    ASSERT_TRUE(stub->GetMetricSpec(&context, object, &spec).ok());
    ASSERT_EQ(spec.metricspecs_size(), 1);
    EXPECT_EQ(spec.metricspecs(0).metricname(), kScalerMetric);
    EXPECT_EQ(spec.metricspecs(0).targetsize(), 1);
  }
  // collect: five prompts in units of two.
  EXPECT_EQ(wanted(kScalerMetric), 3);
  EXPECT_EQ(wanted("other"), -1);
  grpc::ClientContext specs_context;
  auto specs = stub->StreamMetricSpec(&specs_context, object);
  externalscaler::GetMetricSpecResponse first;
  ASSERT_TRUE(specs->Read(&first));
  EXPECT_EQ(first.metricspecs(0).metricname(), kScalerMetric);
  specs_context.TryCancel();

  grpc::ClientContext active_context;
  auto active = stub->StreamIsActive(&active_context, object);
  externalscaler::IsActiveResponse state;
  ASSERT_TRUE(active->Read(&state));
  EXPECT_TRUE(state.result());
  ASSERT_OK(Operator()->Pause().status());
  ASSERT_TRUE(active->Read(&state));
  EXPECT_FALSE(state.result());
  EXPECT_EQ(wanted(kScalerMetric), 0);
  {
    grpc::ClientContext context;
    externalscaler::IsActiveResponse now;
    ASSERT_TRUE(stub->IsActive(&context, object, &now).ok());
    EXPECT_FALSE(now.result());
  }
  ASSERT_OK(Operator()->Resume().status());
  ASSERT_TRUE(active->Read(&state));
  EXPECT_TRUE(state.result());
  (*object.mutable_scalermetadata())["role"] = "learner";
  grpc::ClientContext context;
  externalscaler::IsActiveResponse response;
  EXPECT_EQ(stub->IsActive(&context, object, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  active_context.TryCancel();
}

}  // namespace
}  // namespace cox
