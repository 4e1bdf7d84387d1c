#include <cmath>
#include <set>

#include "cox/v1/checkpoint.pb.h"
#include "cox/v1/control.pb.h"
#include "cox/v1/experience.pb.h"
#include "cox/v1/monitor.pb.h"
#include "cox/v1/rollout.pb.h"
#include "cox/v1/run.pb.h"
#include "cox/v1/version.pb.h"
#include "cox/v1/weight.pb.h"
#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"
#include "lib/base/hash.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/credentials.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/proto_convert.h"
#include "lib/rpc/role_flags.h"
#include "lib/rpc/status_convert.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOk;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

TEST(LimitsTest, EveryRpcOfTheContractHasExactlyOneRow) {
  const google::protobuf::FileDescriptor* files[] = {
      v1::BeginCheckpointRequest::descriptor()->file(),
      v1::PauseRequest::descriptor()->file(),
      v1::TakeBatchRequest::descriptor()->file(),
      v1::StatusRequest::descriptor()->file(),
      v1::ScoreRequest::descriptor()->file(),
      v1::LeaseUnitsRequest::descriptor()->file(),
      v1::RegisterRequest::descriptor()->file(),
      v1::PublishVersionRequest::descriptor()->file(),
      v1::FetchRequest::descriptor()->file()};
  std::multiset<std::string> methods;
  for (const auto* file : files) {
    for (int i = 0; i < file->service_count(); ++i) {
      for (int j = 0; j < file->service(i)->method_count(); ++j) {
        methods.insert(file->service(i)->name() + "." +
                       file->service(i)->method(j)->name());
      }
    }
  }
  std::multiset<std::string> rows;
  for (const RpcLimit& limit : RpcLimits()) {
    rows.insert(std::string(limit.method));
    EXPECT_GT(limit.deadline, absl::ZeroDuration()) << limit.method;
  }
  EXPECT_EQ(rows, methods);
}

TEST(StatusConvertTest, CodeMessageAndReasonSurviveTheTrip) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  }
  EXPECT_THAT(FromGrpc(grpc::Status::OK), IsOk());
  const absl::Status stale = WithReason(absl::FailedPreconditionError("old"),
                                        ErrorReason::kStaleEpoch);
  EXPECT_EQ(ReasonOf(FromGrpc(ToGrpc(stale))), ErrorReason::kStaleEpoch);
  EXPECT_EQ(ReasonOf(Annotate(stale, "while")), ErrorReason::kStaleEpoch);
  EXPECT_EQ(ReasonOf(FromGrpc(grpc::Status(grpc::StatusCode::NOT_FOUND, "x",
                                           "from a newer build"))),
            ErrorReason::kNone);
}

TEST(CredentialsTest, PlaintextIsForLoopbackOnly) {
  for (const char* good : {"127.0.0.1:0", "127.1.2.3:7100", "localhost:1",
                           "[::1]:5", "unix:/tmp/x"}) {
    EXPECT_THAT(CheckLoopback(good), IsOk()) << good;
  }
  for (const char* far :
       {"10.0.0.1:7100", "0.0.0.0:1", "[::]:1", "example.org:1",
        "127.evil.example:1", "127.0.0.1.evil:1"}) {
    EXPECT_THAT(
        CheckLoopback(far),
        StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("loopback")))
        << far;
    EXPECT_FALSE(ServerCredentials(far, nullptr).ok());
    EXPECT_FALSE(ChannelCredentials(far, nullptr).ok());
  }
  for (const char* bad : {"", "127.0.0.1", ":1", "127.0.0.1:", "::1:5",
                          "127.0.0.1:65536", "127.0.0.1:1x"}) {
    EXPECT_THAT(CheckLoopback(bad),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << bad;
  }
}

TEST(ResolveEndpointTest, ReadsBothFormsOfTheFile) {
  testing::TempDir dir;
  const std::string path = dir.Join("endpoints.json");
  const std::string source = "file:" + path;
  EXPECT_THAT(ResolveEndpoint(Fs::Real(), source),
              StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_OK(WriteFileDurably(Fs::Real(), path, "{\"coordinator\": \"127"));
  EXPECT_THAT(ResolveEndpoint(Fs::Real(), source),
              StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_OK(WriteFileDurably(Fs::Real(), path,
                             R"({"run_id":"ab","coordinator":"127.0.0.1:7"})"));
  ASSERT_OK_AND_ASSIGN(Endpoint endpoint, ResolveEndpoint(Fs::Real(), source));
  EXPECT_EQ(endpoint.address, "127.0.0.1:7");
  EXPECT_EQ(endpoint.run_id, "ab");
  ASSERT_OK(WriteFileDurably(Fs::Real(), path,
                             R"({"coordinator":{"grpc":"127.0.0.1:8"}})"));
  ASSERT_OK_AND_ASSIGN(endpoint, ResolveEndpoint(Fs::Real(), source));
  EXPECT_EQ(endpoint.address, "127.0.0.1:8");
  ASSERT_OK(
      WriteFileDurably(Fs::Real(), path, R"({"coordinator":"10.1.1.1:8"})"));
  EXPECT_THAT(ResolveEndpoint(Fs::Real(), source),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(ProtoConvertTest, IdentitiesRoundTripAndAreChecked) {
  v1::UnitId unit;
  ToProto(UnitId{4, 12, 3}, &unit);
  EXPECT_EQ(*FromProto(unit), (UnitId{4, 12, 3}));
  unit.set_step(0);
  EXPECT_THAT(FromProto(unit), StatusIs(absl::StatusCode::kInvalidArgument,
                                        HasSubstr("unit.step")));
  v1::PolicyVersion version;
  ToProto(PolicyVersion{1, 0}, &version);
  EXPECT_EQ(*FromProto(version), (PolicyVersion{1, 0}));
  version.set_stage(-1);
  EXPECT_FALSE(FromProto(version).ok());

  v1::VersionSource source;
  ToProto(VersionSource{.model = "policy",
                        .version = {2, 5},
                        .content_hash = std::string(64, 'a'),
                        .manifest = "{}",
                        .addresses = {"127.0.0.1:1", "127.0.0.1:2"},
                        .group = {"127.0.0.1:3", 4, 5}},
          &source);
  ASSERT_OK_AND_ASSIGN(const VersionSource back, FromProto(source));
  EXPECT_EQ(back.addresses.size(), 2u);
  EXPECT_EQ(back.group.address, "127.0.0.1:3");
  EXPECT_EQ(back.group.generation, 4);
  EXPECT_EQ(back.group.actors, 5);
  EXPECT_EQ(back.version, (PolicyVersion{2, 5}));
  source.mutable_ref()->set_content_hash(std::string(64, 'A'));
  EXPECT_FALSE(FromProto(source).ok());
  source.mutable_ref()->set_content_hash(std::string(64, 'a'));
  source.set_manifest(std::string((1 << 20) + 1, ' '));
  EXPECT_FALSE(FromProto(source).ok());
}

TEST(ProtoConvertTest, ScoresMustBeFinite) {
  Trajectory t;
  t.reward_total = 1.0;
  v1::SequenceScore score;
  score.set_reason("table");
  ASSERT_OK(ApplyScore(score, &t));
  EXPECT_FALSE(t.reward_total.has_value());  // not scored
  score.set_scored(true);
  score.set_total(0.5);
  auto* part = score.add_parts();
  part->set_name("rm");
  part->set_value(0.25);
  ASSERT_OK(ApplyScore(score, &t));
  EXPECT_EQ(t.reward_total, 0.5);
  EXPECT_EQ(t.reward_parts[0].second, 0.25);
  part->set_value(INFINITY);
  EXPECT_FALSE(ApplyScore(score, &t).ok());
  part->set_value(0);
  score.set_total(NAN);
  EXPECT_FALSE(ApplyScore(score, &t).ok());
}

TEST(ProtoConvertTest, ReferenceLogprobsAreOnePerTokenAndNotPositive) {
  Trajectory t;
  t.response_ids = {1, 2};
  v1::SequenceLogprobs logprobs;
  logprobs.add_logprobs(-1.0f);
  EXPECT_THAT(
      ApplyLogprobs(logprobs, &t),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 2")));
  logprobs.add_logprobs(0.0f);
  ASSERT_OK(ApplyLogprobs(logprobs, &t));
  EXPECT_EQ(t.reference_logprobs, (std::vector<float>{-1.0f, 0.0f}));
  for (const float bad : {0.5f, NAN, -INFINITY}) {
    logprobs.set_logprobs(1, bad);
    EXPECT_FALSE(ApplyLogprobs(logprobs, &t).ok()) << bad;
  }
}

TEST(ChunkTest, StreamOfChunksRebuildsTheBytes) {
  const std::string bytes(2 * kChunkBytes + 17, 'x');
  ASSERT_EQ(ChunkCount(bytes.size()), 3u);
  EXPECT_EQ(ChunkCount(kChunkBytes), 1u);
  EXPECT_EQ(ChunkCount(0), 1u);
  std::string built;
  for (size_t i = 0; i < 3; ++i) {
    ASSERT_OK(
        AppendChunk(MakeChunk(i * kChunkBytes, bytes), bytes.size(), &built));
  }
  EXPECT_EQ(built, bytes);
}

TEST(ChunkTest, RefusesDamageDisorderAndExcess) {
  v1::Chunk chunk = MakeChunk(0, "abcdef");
  std::string built;
  EXPECT_THAT(AppendChunk(chunk, 5, &built),
              StatusIs(absl::StatusCode::kInvalidArgument));
  chunk.set_offset(1);
  EXPECT_THAT(AppendChunk(chunk, 100, &built),
              StatusIs(absl::StatusCode::kInvalidArgument));
  chunk.set_offset(0);
  chunk.mutable_data()->at(3) ^= 1;
  EXPECT_THAT(AppendChunk(chunk, 100, &built),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(built.empty());
  v1::Chunk large;
  large.set_data(std::string(kChunkBytes + 1, 'x'));
  large.set_xxh3(Xxh3_128(large.data()));
  EXPECT_THAT(AppendChunk(large, kChunkBytes * 2, &built),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(SessionTest, IsHexAndNew) {
  const std::string a = NewSessionId();
  EXPECT_EQ(a.size(), 32u);
  EXPECT_EQ(a.find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_NE(a, NewSessionId());
}

TEST(RoleFlagsTest, ParsesBothFormsAndNamesWhatIsWrong) {
  const char* argv[] = {"p",           "--coordinator", "127.0.0.1:9",
                        "--run-id=ab", "--port",        "12",
                        "--name",      "actor-3"};
  ASSERT_OK_AND_ASSIGN(const RoleFlags flags,
                       ParseRoleFlags("p", "actor-0", 8, argv));
  EXPECT_EQ(flags.coordinator, "127.0.0.1:9");
  EXPECT_EQ(flags.run_id, "ab");
  EXPECT_EQ(flags.bind, "127.0.0.1:12");
  EXPECT_EQ(flags.name, "actor-3");
  const char* port[] = {"p", "--coordinator=x", "--port=70000"};
  EXPECT_THAT(
      ParseRoleFlags("p", "n", 3, port),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--port")));
  const char* unknown[] = {"p", "--colour", "red"};
  EXPECT_THAT(
      ParseRoleFlags("p", "n", 3, unknown),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--colour")));
  EXPECT_THAT(
      ParseRoleFlags("p", "n", 1, port),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--coordinator")));
  const char* help[] = {"p", "--help"};
  EXPECT_THAT(ParseRoleFlags("p", "n", 2, help),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("usage")));
}

}  // namespace
}  // namespace cox
