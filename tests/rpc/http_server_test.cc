#include "lib/rpc/http_server.h"

#include <atomic>

#include "gtest/gtest.h"
#include "httplib.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;

TEST(HttpServerTest, ServesProbesMetricsAndPages) {
  std::atomic<bool> ready = false;
  HttpServerOptions options;
  options.ready = [&ready] { return ready.load(); };
  options.metrics = [] { return std::string("x 1\n"); };
  options.pages["/page"] = {.content_type = "text/html",
                            .body = [] { return std::string("<p>"); }};
  ASSERT_OK_AND_ASSIGN(auto server, HttpServer::Start(std::move(options)));
  httplib::Client client("127.0.0.1", server->port());
  EXPECT_EQ(client.Get("/livez")->status, 200);
  EXPECT_EQ(client.Get("/readyz")->status, 503);
  ready = true;
  EXPECT_EQ(client.Get("/readyz")->status, 200);
  EXPECT_EQ(client.Get("/metrics")->body, "x 1\n");
  EXPECT_EQ(client.Get("/page")->get_header_value("Content-Type"), "text/html");
  EXPECT_EQ(client.Get("/other")->status, 404);
}

TEST(HttpServerTest, APortThatIsTakenIsAnError) {
  ASSERT_OK_AND_ASSIGN(auto first, HttpServer::Start({}));
  HttpServerOptions options;
  options.port = first->port();
  EXPECT_THAT(HttpServer::Start(std::move(options)),
              StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace cox
