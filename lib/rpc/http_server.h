#ifndef COX_LIB_RPC_HTTP_SERVER_H_
#define COX_LIB_RPC_HTTP_SERVER_H_

// The small plain HTTP port of every role: /livez and /readyz for probes,
// /metrics for Prometheus. Numbers only, never text of users.

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "lib/base/status.h"

namespace cox {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0 = the kernel chooses
  // All called from the server's threads; must be thread-safe and fast.
  std::function<bool()> ready;           // /readyz: 200 or 503; unset = 200
  std::function<std::string()> metrics;  // Prometheus text format; unset = ""
  // Further GET paths -> (content type, body), e.g. a dashboard's.
  struct Page {
    std::string content_type = "text/plain";
    std::function<std::string()> body;
  };
  std::map<std::string, Page> pages;
};

// Owns its threads. Thread-safe.
class HttpServer {
 public:
  // UNAVAILABLE: the port is taken.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      HttpServerOptions options);
  ~HttpServer();  // stops and joins
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  int port() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace cox

#endif  // COX_LIB_RPC_HTTP_SERVER_H_
