#include "cli/bench_score_service.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cox/v1/reward.grpc.pb.h"
#include "grpcpp/client_context.h"
#include "lib/model/api.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/server.h"
#include "lib/rpc/status_convert.h"
#include "reward/engine_driver.h"
#include "reward/reward_service.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr auto kDeadline = std::chrono::minutes(10);

class LoopbackService final : public BenchScoreService {
 public:
  explicit LoopbackService(const EngineOptions& options)
      : driver_([options] { return MakeScoreEngine(options); },
                /*queue_capacity=*/16) {}
  ~LoopbackService() override { server_.reset(); }  // before its handlers

  absl::Status Start(const std::shared_ptr<const Snapshot>& snapshot) {
    COX_ASSIGN_OR_RETURN(const ModelConfig config,
                         ModelConfig::FromJson(snapshot->manifest.config_json));
    gain_ = config.reward_gain;
    bias_ = config.reward_bias;
    COX_RETURN_IF_ERROR(driver_.Load(ModelSlot::kReward, snapshot));
    hash_ = driver_.Held(ModelSlot::kReward);
    holder_.Attach({.run_id = "", .rules = {}, .driver = &driver_});
    COX_ASSIGN_OR_RETURN(server_, RpcServer::Start({.services = {&service_}}));
    server_->SetServing(true);
    COX_ASSIGN_OR_RETURN(const auto channel, MakeChannel(server_->address()));
    stub_ = v1::RewardService::NewStub(channel);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<float>> Score(
      const std::vector<std::vector<int32_t>>& docs) override {
    v1::ScoreRequest request;
    request.set_reward_hash(hash_);
    for (const std::vector<int32_t>& doc : docs) {
      request.add_sequences()->mutable_prompt_ids()->Assign(doc.begin(),
                                                            doc.end());
    }
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kDeadline);
    v1::ScoreResponse response;
    COX_RETURN_IF_ERROR(FromGrpc(stub_->Score(&context, request, &response)));
    if (static_cast<size_t>(response.scores_size()) != docs.size()) {
      return absl::InternalError(absl::StrCat("reward service: expected ",
                                              docs.size(), " scores, found ",
                                              response.scores_size()));
    }
    std::vector<float> scores;
    for (const v1::SequenceScore& score : response.scores()) {
      scores.push_back(static_cast<float>((score.total() - bias_) / gain_));
    }
    return scores;
  }

 private:
  EngineDriver driver_;
  RewardBackendHolder holder_;
  RewardServiceImpl service_{&holder_};
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::RewardService::Stub> stub_;
  std::string hash_;
  double gain_ = 1, bias_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BenchScoreService>> StartBenchScoreService(
    const EngineOptions& options, std::shared_ptr<const Snapshot> snapshot) {
  auto service = std::make_unique<LoopbackService>(options);
  COX_RETURN_IF_ERROR(service->Start(snapshot));
  return service;
}

}  // namespace cox
