#include "lib/rpc/tls.h"

#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <thread>

#include "cox/v1/reward.grpc.pb.h"
#include "cox/v1/weight.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"
#include "lib/rpc/authorization.h"
#include "lib/rpc/certificates.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/credentials.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/server.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOk;
using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;
using ::testing::HasSubstr;

PeerIdentity Who(const std::string& role, const std::string& run = "demo") {
  return {"cox.local", "default", run, role, role};
}

void WriteIdentity(const std::string& dir, const KeyPair& leaf,
                   const std::string& roots) {
  ASSERT_THAT(Fs::Real().MakeDirs(dir), IsOk());
  ASSERT_THAT(WriteFileDurably(Fs::Real(), dir + "/tls.key", leaf.key_pem),
              IsOk());
  ASSERT_THAT(
      WriteFileDurably(Fs::Real(), dir + "/tls.crt", leaf.certificate_pem),
      IsOk());
  ASSERT_THAT(WriteFileDurably(Fs::Real(), dir + "/ca.crt", roots), IsOk());
}

class World {
 public:
  World()
      : authority(*MakeAuthority("test", absl::Hours(1))),
        stranger(*MakeAuthority("other", absl::Hours(1))) {}

  std::shared_ptr<const TlsIdentity> Identity(
      const std::string& label, const PeerIdentity& who,
      const KeyPair* signer = nullptr,
      absl::Duration lifetime = absl::Hours(1)) {
    LeafRequest request;
    request.identity = who;
    request.lifetime = lifetime;
    request.backdate = absl::Hours(2);
    const KeyPair leaf =
        *IssueLeaf(signer == nullptr ? authority : *signer, request);
    WriteIdentity(tmp.Join(label), leaf, authority.certificate_pem);
    absl::StatusOr<std::shared_ptr<const TlsIdentity>> tls =
        TlsIdentity::Load(tmp.Join(label));
    EXPECT_THAT(tls.status(), IsOk());
    return *tls;
  }

  TempDir tmp;
  KeyPair authority;
  KeyPair stranger;
};

// Answers everything with UNIMPLEMENTED; a server needs some service.
cox::v1::WeightService::Service kNothing;

// Status code of an empty unary request to `path`.
grpc::StatusCode CodeOn(const std::shared_ptr<grpc::Channel>& channel,
                        const std::string& path) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::seconds(5));
  grpc::ByteBuffer request(nullptr, 0);
  grpc::ByteBuffer response;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareUnaryCall(&context, path, request, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  return status.error_code();
}

// The same on a new channel as `tls`.
grpc::StatusCode CodeOf(const std::string& address, const TlsIdentity* tls,
                        const std::string& path) {
  const auto channel = MakeChannelAs(address, tls);
  return channel.ok() ? CodeOn(*channel, path) : grpc::StatusCode::INTERNAL;
}

// Every RPC of the table, by path.
std::vector<std::string> Paths() {
  std::vector<std::string> paths;
  for (const RpcLimit& limit : RpcLimits()) {
    const std::string method(limit.method);
    const size_t dot = method.find('.');
    paths.push_back("/cox.v1." + method.substr(0, dot) + "/" +
                    method.substr(dot + 1));
  }
  for (const char* method : {"IsActive", "StreamIsActive", "GetMetricSpec",
                             "StreamMetricSpec", "GetMetrics"}) {
    paths.push_back(std::string("/externalscaler.ExternalScaler/") + method);
  }
  return paths;
}

// The authorizer runs before the method is looked up: an allowed call of a
// method that this server lacks is UNIMPLEMENTED, a forbidden one never gets
// that far. So one server is enough for the whole matrix.
TEST(TlsTest, EveryRpcByEveryIdentity) {
  World world;
  auto server =
      *RpcServer::Start({.bind = "127.0.0.1:0",
                         .services = {&kNothing},
                         .advertise = "",
                         .tls = world.Identity("server", Who("coordinator"))});
  const std::string& address = server->address();
  std::map<std::string, std::shared_ptr<const TlsIdentity>> right, wrong_run,
      wrong_namespace, wrong_domain;
  for (const std::string_view role_view : Roles()) {
    const std::string role(role_view);
    right[role] = world.Identity("right-" + role, Who(role));
    wrong_run[role] = world.Identity("run-" + role, Who(role, "another"));
    PeerIdentity other = Who(role);
    other.ns = "elsewhere";
    wrong_namespace[role] = world.Identity("ns-" + role, other);
    other = Who(role);
    other.trust_domain = "evil.local";
    wrong_domain[role] = world.Identity("domain-" + role, other);
  }
  const auto expired =
      world.Identity("expired", Who("learner"), nullptr, -absl::Minutes(30));
  const auto self_signed =
      world.Identity("stranger", Who("learner"), &world.stranger);
  int cells = 0;
  for (const std::string& path : Paths()) {
    const std::string method = MethodOfPath(path);
    ASSERT_FALSE(method.empty()) << path;
    for (const auto& [role, tls] : right) {
      const bool may = RoleMay(role, method);
      EXPECT_EQ(CodeOf(address, tls.get(), path),
                may ? grpc::StatusCode::UNIMPLEMENTED
                    : grpc::StatusCode::PERMISSION_DENIED)
          << role << " " << method;
      ++cells;
    }
    // A client refuses a server of another run before it sends anything.
    for (const auto* strangers :
         {&wrong_run, &wrong_namespace, &wrong_domain}) {
      EXPECT_EQ(CodeOf(address, strangers->at("learner").get(), path),
                grpc::StatusCode::UNAVAILABLE)
          << method;
      ++cells;
    }
    for (const TlsIdentity* bad : {expired.get(), self_signed.get(),
                                   static_cast<const TlsIdentity*>(nullptr)}) {
      EXPECT_EQ(CodeOf(address, bad, path), grpc::StatusCode::UNAVAILABLE)
          << method;
      ++cells;
    }
  }
  EXPECT_EQ(cells, static_cast<int>(Paths().size()) * 13);
  EXPECT_EQ(
      CodeOf(address, right["learner"].get(), "/evil.RunService/Register"),
      grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(
      CodeOf(address, right["learner"].get(), "/grpc.health.v1.Health/Check"),
      grpc::StatusCode::OK);
}

// A client of another run that does not check its server is still refused.
TEST(TlsTest, ServerRefusesAnotherRun) {
  World world;
  auto server =
      *RpcServer::Start({.bind = "127.0.0.1:0",
                         .services = {&kNothing},
                         .advertise = "",
                         .tls = world.Identity("server", Who("coordinator"))});
  const auto other = world.Identity("other", Who("learner", "another"));
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = world.authority.certificate_pem;
  options.pem_private_key = *Fs::Real().ReadAll(other->dir() + "/tls.key");
  options.pem_cert_chain = *Fs::Real().ReadAll(other->dir() + "/tls.crt");
  // The leaf has no DNS name, so plain TLS needs an override that it cannot
  // have; the address check is what a hostile client would leave out.
  LeafRequest named;
  named.identity = Who("coordinator");
  named.ip_addresses = {"127.0.0.1"};
  WriteIdentity(world.tmp.Join("named"), *IssueLeaf(world.authority, named),
                world.authority.certificate_pem);
  auto named_server =
      *RpcServer::Start({.bind = "127.0.0.1:0",
                         .services = {&kNothing},
                         .advertise = "",
                         .tls = *TlsIdentity::Load(world.tmp.Join("named"))});
  auto channel = grpc::CreateChannel(named_server->address(),
                                     grpc::SslCredentials(options));
  auto stub = cox::v1::WeightService::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::seconds(5));
  auto reader = stub->Fetch(&context, cox::v1::FetchRequest());
  cox::v1::Chunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(status.error_message(), HasSubstr("another run"));
}

TEST(TlsTest, AClientRefusesAServerThatIsNoServer) {
  World world;
  auto server =
      *RpcServer::Start({.bind = "127.0.0.1:0",
                         .services = {&kNothing},
                         .advertise = "",
                         .tls = world.Identity("viewer", Who("viewer"))});
  EXPECT_EQ(
      CodeOf(server->address(), world.Identity("learner", Who("learner")).get(),
             "/grpc.health.v1.Health/Check"),
      grpc::StatusCode::UNAVAILABLE);
}

TEST(TlsTest, PlaintextStaysOnLoopback) {
  World world;
  const auto tls = world.Identity("me", Who("actor"));
  EXPECT_THAT(
      CheckAddress("10.0.0.1:7100", nullptr),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("--tls DIR")));
  EXPECT_THAT(CheckAddress("10.0.0.1:7100", tls.get()), IsOk());
  EXPECT_THAT(CheckAddress("coordinator", tls.get()),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

// New certificates are used without a restart, and no call fails meanwhile.
double FromEnvironment(const char* name, double fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::atof(text);
}

// Twenty certificates, each of which replaces the one before while it is still
// valid; the first ones expire long before the end. By hand with the lifetime
// of the goal (docs/results.md): COX_LIFETIME_S=30 COX_RENEW_EVERY_S=20.
TEST(TlsTest, RotationUnderLoadFailsNoCall) {
  const absl::Duration lifetime =
      absl::Seconds(FromEnvironment("COX_LIFETIME_S", 5));
  const absl::Duration every =
      absl::Seconds(FromEnvironment("COX_RENEW_EVERY_S", 0.35));
  const int rotations = static_cast<int>(FromEnvironment("COX_ROTATIONS", 20));
  TempDir tmp;
  CertificateFolderOptions options;
  options.dir = tmp.path();
  options.run = "demo";
  options.lifetime = lifetime;
  ASSERT_THAT(InitCertificates(options), IsOk());
  EXPECT_THAT(InitCertificates(options),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("renew")));
  auto server =
      *RpcServer::Start({.bind = "127.0.0.1:0",
                         .services = {&kNothing},
                         .advertise = "",
                         .tls = *TlsIdentity::Load(tmp.Join("coordinator"))});
  server->SetServing(true);
  const auto client = *TlsIdentity::Load(tmp.Join("viewer"));
  const auto kept = *MakeChannelAs(server->address(), client.get());
  std::atomic<bool> stop = false;
  std::atomic<int64_t> handshakes = 0;
  std::atomic<int64_t> calls = 0;
  std::atomic<int64_t> failed = 0;
  // A new channel each time: it is the handshake that may fail.
  std::thread fresh([&] {
    while (!stop) {
      const grpc::StatusCode code = CodeOf(server->address(), client.get(),
                                           "/grpc.health.v1.Health/Check");
      ++handshakes;
      if (code != grpc::StatusCode::OK) ++failed;
    }
  });
  // And one that stays open over all of them.
  std::thread open([&] {
    while (!stop) {
      const grpc::StatusCode code =
          CodeOn(kept, "/grpc.health.v1.Health/Check");
      ++calls;
      if (code != grpc::StatusCode::OK) ++failed;
    }
  });
  const std::string before = *Fs::Real().ReadAll(tmp.Join("viewer/tls.crt"));
  const absl::Time start = absl::Now();
  for (int i = 0; i < rotations; ++i) {
    ASSERT_THAT(RenewCertificates(tmp.path(), lifetime), IsOk());
    absl::SleepFor(every);
  }
  const absl::Duration took = absl::Now() - start;
  stop = true;
  fresh.join();
  open.join();
  std::printf(
      "%d rotations of %s certificates in %.0f s: %lld handshakes, "
      "%lld calls on one connection, %lld failed\n",
      rotations, absl::FormatDuration(lifetime).c_str(),
      absl::ToDoubleSeconds(took), static_cast<long long>(handshakes.load()),
      static_cast<long long>(calls.load()),
      static_cast<long long>(failed.load()));
  EXPECT_NE(*Fs::Real().ReadAll(tmp.Join("viewer/tls.crt")), before);
  EXPECT_GT(took, lifetime);  // else nothing that expired was replaced
  EXPECT_EQ(failed, 0);
  EXPECT_GT(handshakes, rotations);
  EXPECT_GT(calls, rotations);
}

TEST(TlsTest, LoadSaysWhatIsWrong) {
  World world;
  const std::string dir = world.tmp.Join("x");
  EXPECT_THAT(TlsIdentity::Load(dir),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("tls.key")));
  LeafRequest request;
  request.identity = Who("actor");
  const KeyPair leaf = *IssueLeaf(world.authority, request);
  const KeyPair other = *IssueLeaf(world.authority, request);
  WriteIdentity(dir, {leaf.certificate_pem, other.key_pem},
                world.authority.certificate_pem);
  EXPECT_THAT(
      TlsIdentity::Load(dir),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("another one")));
  WriteIdentity(dir, {"nonsense", leaf.key_pem}, "");
  EXPECT_THAT(
      TlsIdentity::Load(dir),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tls.crt")));
  WriteIdentity(dir, world.authority, world.authority.certificate_pem);
  EXPECT_THAT(
      TlsIdentity::Load(dir),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("URI name")));
  WriteIdentity(dir, leaf, world.authority.certificate_pem);
  EXPECT_THAT(TlsIdentity::Load(dir).status(), IsOk());
  ASSERT_EQ(chmod((dir + "/tls.key").c_str(), 0644), 0);
  EXPECT_THAT(
      TlsIdentity::Load(dir),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("others")));
}

TEST(IdentityTest, RoundTripAndRefusals) {
  const PeerIdentity who = {"cox.local", "team-a", "run_1.x", "actor", "a-0"};
  EXPECT_THAT(ParseIdentity(FormatIdentity(who)), IsOkAndHolds(who));
  for (const char* bad :
       {"", "spiffe://", "http://d/ns/n/run/r/role/actor/a",
        "spiffe://d/ns/n/run/r/role/actor", "spiffe://d/ns//run/r/role/a/a",
        "spiffe://d/ns/n/run/r/role/a/a/b", "spiffe://d/run/r/ns/n/role/a/a",
        "spiffe://d/ns/n/run/r r/role/a/a", "spiffe://d/ns/n/run/r/role/a/"}) {
    EXPECT_THAT(ParseIdentity(bad),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << bad;
  }
  EXPECT_THAT(ParseIdentity("spiffe://d/ns/n/run/" + std::string(600, 'r') +
                            "/role/a/a"),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(IdentityTest, TheRoleInAnIdentity) {
  for (const std::string_view role : Roles()) {
    PeerIdentity who = Who(std::string(role));
    who.ns = "role";  // a namespace may be called like the part before the role
    EXPECT_EQ(RoleInIdentity(FormatIdentity(who)), role);
  }
  EXPECT_EQ(RoleInIdentity(""), "");
  EXPECT_EQ(RoleInIdentity("spiffe"), "");
}

TEST(AuthorizationTest, PathsAndDefaults) {
  EXPECT_EQ(MethodOfPath("/cox.v1.RunService/Register"), "RunService.Register");
  for (const char* bad :
       {"", "x", "/", "/a", "/cox.v1.RunService/", "/cox.v1.RunService/a/b",
        "/other.RunService/Register", "/cox.v1.x.RunService/Register"}) {
    EXPECT_EQ(MethodOfPath(bad), "") << bad;
  }
  EXPECT_FALSE(RoleMay("learner", ""));
  EXPECT_FALSE(RoleMay("", "RunService.Register"));
  EXPECT_FALSE(RoleMay("root", "RunService.Register"));
  // Every RPC of the wire has a row, and somebody may call it.
  for (const RpcLimit& limit : RpcLimits()) {
    int allowed = 0;
    for (const std::string_view role : Roles()) {
      allowed += RoleMay(role, limit.method) ? 1 : 0;
    }
    EXPECT_GT(allowed, 0) << limit.method;
  }
}

}  // namespace
}  // namespace cox
