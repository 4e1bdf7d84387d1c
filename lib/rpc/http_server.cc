#include "lib/rpc/http_server.h"

#include <utility>

#include "httplib.h"
#include "lib/base/thread.h"

namespace cox {

class HttpServer::Impl {
 public:
  explicit Impl(HttpServerOptions options) : options_(std::move(options)) {
    // Probes and one scraper; the library's default is a thread per core.
    server_.new_task_queue = [] { return new httplib::ThreadPool(2); };
    // The library's own choice, SO_REUSEPORT, would let two processes share a
    // port and each get half of the calls.
    server_.set_socket_options([](socket_t socket) {
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    server_.set_payload_max_length(4096);
    server_.set_read_timeout(5);
    server_.set_write_timeout(5);
    server_.Get("/livez",
                [](const httplib::Request&, httplib::Response& response) {
                  response.set_content("ok\n", "text/plain");
                });
    server_.Get("/readyz", [this](const httplib::Request&,
                                  httplib::Response& response) {
      const bool ready = !options_.ready || options_.ready();
      response.status = ready ? 200 : 503;
      response.set_content(ready ? "ok\n" : "not ready\n", "text/plain");
    });
    server_.Get("/metrics", [this](const httplib::Request&,
                                   httplib::Response& response) {
      response.set_content(options_.metrics ? options_.metrics() : "",
                           "text/plain; version=0.0.4");
    });
    for (const auto& [path, page] : options_.pages) {
      server_.Get(path, [&page = page](const httplib::Request&,
                                       httplib::Response& response) {
        response.set_content(page.body(), page.content_type);
      });
    }
  }
  ~Impl() {
    server_.stop();
    thread_.Join();
  }

  absl::Status Listen() {
    if (options_.port == 0) {
      port_ = server_.bind_to_any_port(options_.host);
    } else if (server_.bind_to_port(options_.host, options_.port)) {
      port_ = options_.port;
    }
    if (port_ <= 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", options_.host, ":", options_.port));
    }
    thread_ = Thread("http", [this] { server_.listen_after_bind(); });
    // stop() before the loop runs would be lost.
    while (!server_.is_running()) std::this_thread::yield();
    return absl::OkStatus();
  }
  int port() const { return port_; }

 private:
  const HttpServerOptions options_;
  httplib::Server server_;
  int port_ = -1;
  Thread thread_;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    HttpServerOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  COX_RETURN_IF_ERROR(impl->Listen());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

int HttpServer::port() const { return impl_->port(); }

}  // namespace cox
