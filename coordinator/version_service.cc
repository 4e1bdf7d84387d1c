#include "coordinator/version_service.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "coordinator/wire_service.h"
#include "lib/base/hash.h"
#include "lib/rpc/limits.h"
#include "lib/rpc/proto_convert.h"

namespace cox {
namespace {

constexpr int kMaxCanary = 64;

constexpr absl::Duration kLongestWatch = absl::Hours(1);

// One watcher. Between two targets it is parked on the core thread; an attempt
// that sends something is over, and the end of that write parks it again, so
// that there is never more than one write or one attempt.
class WatchStream : public grpc::ServerWriteReactor<cox::v1::VersionSource> {
 public:
  WatchStream(ServiceContext& service, grpc::CallbackServerContext* context)
      : service_(service), context_(context) {}

  void Start(const cox::v1::WatchVersionsRequest& request) {
    const absl::Status admitted = Admit(service_, *context_, request.caller(),
                                        "VersionService.WatchVersions");
    if (!admitted.ok()) {
      Finish(ToGrpc(admitted));
      return;
    }
    model_ = request.model();
    until_ = Clock::Real().Now() + std::min(kLongestWatch, TimeLeft(*context_));
    Wait();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "caller is gone"));
    } else {
      Wait();
    }
  }
  // Wakes the attempt, which then sees that the caller is gone.
  void OnCancel() override {
    (void)service_.host->Post([] {});
  }
  void OnDone() override { delete this; }

 private:
  void Wait() {
    CoreHost* host = service_.host;
    const bool posted = host->Post([this, host] { Poll(*host); });
    if (!posted) {
      Finish(ToGrpc(BusyError()));
    }
  }
  // Parks for a second at a time: a caller that is gone is noticed then at the
  // latest.
  void Poll(CoreHost& host) {
    const absl::Duration left = until_ - Clock::Real().Now();
    const absl::Duration wait =
        std::clamp(left, absl::ZeroDuration(), absl::Seconds(1));
    host.Park(
        wait,
        [this, &host, last = left <= wait](bool expired) {
          return Attempt(host, expired, last);
        },
        /*gone=*/nullptr, kOtherChange);
  }
  bool Attempt(CoreHost& host, bool expired, bool last) {
    if (context_->IsCancelled() || (expired && (last || !host.parking()))) {
      host.AfterCommit(
          [this](const absl::Status&) { Finish(grpc::Status::OK); });
      return true;
    }
    const std::optional<SourceData> target = host.core().Target(model_);
    cox::v1::VersionSource source;
    if (target.has_value()) {
      FillSource(*target, &source);
    }
    // Sources come and go; only another version is news, unless the last one
    // had nobody to fetch it from.
    const std::string key = absl::StrCat(
        source.ref().version().stage(), "/", source.ref().version().step(), "/",
        source.ref().content_hash(), source.addresses().empty() ? "-" : "+");
    if (!target.has_value() || key == sent_) {
      if (expired) {
        // A new turn, because this attempt's time is over.
        host.AfterCommit([this](const absl::Status& committed) {
          if (committed.ok()) {
            Wait();
          } else {
            Finish(ToGrpc(committed));
          }
        });
      }
      return expired;
    }
    sent_ = key;
    host.AfterCommit(
        [this, source = std::move(source)](const absl::Status& committed) {
          if (committed.ok()) {
            message_ = source;
            StartWrite(&message_);
          } else {
            Finish(ToGrpc(committed));
          }
        });
    return true;
  }

  ServiceContext& service_;
  grpc::CallbackServerContext* const context_;
  std::string model_;
  MonoTime until_;
  std::string sent_;
  cox::v1::VersionSource message_;
};

}  // namespace

grpc::ServerUnaryReactor* VersionServiceImpl::PublishVersion(
    grpc::CallbackServerContext* context,
    const cox::v1::PublishVersionRequest* request,
    cox::v1::PublishVersionResponse*) {
  return RunUnary(
      service_, context, request->caller(), "VersionService.PublishVersion",
      [request](CoordinatorCore& core) -> absl::Status {
        if (request->manifest().size() > kMaxManifestBytes) {
          return absl::InvalidArgumentError("manifest: too large");
        }
        if (Sha256Hex(std::string_view(request->manifest())) !=
            request->ref().content_hash()) {
          return absl::InvalidArgumentError(
              "manifest: does not hash to ref.content_hash");
        }
        PublishEvent event;
        event.caller = ToCore(request->caller());
        event.version.model = request->ref().model();
        COX_ASSIGN_OR_RETURN(event.version.version,
                             FromProto(request->ref().version()));
        event.version.content_hash = request->ref().content_hash();
        event.version.manifest = request->manifest();
        event.address = request->address().substr(0, 512);
        event.group_address = request->group_address().substr(0, 512);
        if (request->canary_size() > kMaxCanary) {
          return absl::InvalidArgumentError("canary: too many values");
        }
        event.canary.assign(request->canary().begin(), request->canary().end());
        return core.Publish(event);
      });
}

grpc::ServerWriteReactor<cox::v1::VersionSource>*
VersionServiceImpl::WatchVersions(
    grpc::CallbackServerContext* context,
    const cox::v1::WatchVersionsRequest* request) {
  auto* stream = new WatchStream(service_, context);
  stream->Start(*request);
  return stream;
}

grpc::ServerUnaryReactor* VersionServiceImpl::ReportHeld(
    grpc::CallbackServerContext* context,
    const cox::v1::ReportHeldRequest* request, cox::v1::ReportHeldResponse*) {
  return RunUnary(
      service_, context, request->caller(), "VersionService.ReportHeld",
      [request](CoordinatorCore& core) -> absl::Status {
        constexpr int kMaxHeld = 4096;
        if (request->content_hashes_size() > kMaxHeld) {
          return absl::InvalidArgumentError("content_hashes: too many");
        }
        return core.ReportHeld(ToCore(request->caller()),
                               {request->content_hashes().begin(),
                                request->content_hashes().end()},
                               request->address().substr(0, 512),
                               request->damaged().substr(0, 512));
      });
}

}  // namespace cox
