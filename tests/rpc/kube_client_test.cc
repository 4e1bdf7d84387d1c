#include "lib/rpc/kube_client.h"

#include <thread>

#include "gmock/gmock.h"
#include "httplib.h"
#include "lib/base/fs.h"
#include "lib/rpc/certificates.h"
#include "nlohmann/json.hpp"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

// An API server that knows one pod and one token.
class KubeClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto authority = MakeAuthority("cluster", absl::Hours(1));
    ASSERT_OK(authority.status());
    const auto other = MakeAuthority("somebody", absl::Hours(1));
    ASSERT_OK(other.status());
    other_roots_ = other->certificate_pem;
    LeafRequest request;
    request.identity = {"cox.local", "kube", "kube", "viewer", "api"};
    request.ip_addresses = {"127.0.0.1"};
    const auto leaf = IssueLeaf(*authority, request);
    ASSERT_OK(leaf.status());
    Write("cert", leaf->certificate_pem);
    Write("key", leaf->key_pem);
    Write("ca.crt", authority->certificate_pem);
    Write("token", "secret\n");
    Write("namespace", "cox");
    server_ = std::make_unique<httplib::SSLServer>(
        JoinPath(dir_.path(), "cert").c_str(),
        JoinPath(dir_.path(), "key").c_str());
    server_->Patch(
        R"(/api/v1/namespaces/cox/pods/(.*))",
        [this](const httplib::Request& request_in,
               httplib::Response& response) { Answer(request_in, response); });
    port_ = server_->bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_->listen_after_bind(); });
    // stop() before the thread listens would be lost.
    while (!server_->is_running()) std::this_thread::yield();
  }
  void TearDown() override {
    if (server_ != nullptr) server_->stop();
    if (thread_.joinable()) thread_.join();
  }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_OK(WriteFileDurably(Fs::Real(), JoinPath(dir_.path(), name), text));
  }
  void Answer(const httplib::Request& request, httplib::Response& response) {
    if (request.get_header_value("Authorization") != "Bearer secret") {
      response.status = 403;
    } else if (request.matches[1] != "actor-1") {
      response.status = 404;
    } else {
      type_ = request.get_header_value("Content-Type");
      body_ = request.body;
      response.set_content("{}", "application/json");
    }
  }
  absl::Status Annotate(const std::string& pod) {
    KubeClientOptions options;
    options.dir = dir_.path();
    options.host = "127.0.0.1";
    options.port = port_;
    absl::StatusOr<KubeClient> client = KubeClient::Create(options);
    if (!client.ok()) return client.status();
    return client->Annotate(pod, {{"a/b", "100"}});
  }

  testing::TempDir dir_;
  std::unique_ptr<httplib::SSLServer> server_;
  std::thread thread_;
  int port_ = 0;
  std::string other_roots_;
  std::string type_;
  std::string body_;
};

TEST_F(KubeClientTest, MergesAnnotations) {
  ASSERT_OK(Annotate("actor-1"));
  EXPECT_EQ(type_, "application/merge-patch+json");
  EXPECT_EQ(
      nlohmann::json::parse(body_),
      nlohmann::json({{"metadata", {{"annotations", {{"a/b", "100"}}}}}}));
}

TEST_F(KubeClientTest, SaysWhatWentWrong) {
  EXPECT_THAT(Annotate("actor-2"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("actor-2")));
  Write("token", "expired");
  EXPECT_THAT(Annotate("actor-1"),
              StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("403")));
}

TEST_F(KubeClientTest, TrustsTheClustersAuthorityOnly) {
  Write("ca.crt", other_roots_);
  EXPECT_THAT(Annotate("actor-1"), StatusIs(absl::StatusCode::kUnavailable,
                                            HasSubstr("API server")));
  EXPECT_EQ(body_, "");
}

TEST(KubeClientWithoutServerTest, IsOnlyForPods) {
  cox::testing::TempDir dir;
  KubeClientOptions options;
  options.dir = JoinPath(dir.path(), "nowhere");
  options.host = "127.0.0.1";
  EXPECT_THAT(KubeClient::Create(options).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("service account")));
}

}  // namespace
}  // namespace cox
