#include "lib/rpc/tls.h"

#include <sys/stat.h>

#include <cstdlib>
#include <utility>
#include <vector>

#include "grpc/grpc_security_constants.h"
#include "grpcpp/security/auth_metadata_processor.h"
#include "grpcpp/security/tls_certificate_verifier.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "lib/base/fs.h"
#include "lib/base/sync.h"
#include "lib/rpc/authorization.h"
#include "lib/rpc/certificates.h"

namespace cox {
namespace {

namespace tls = grpc::experimental;

constexpr unsigned kRefreshSeconds = 1;

bool MayServe(const PeerIdentity& identity) {
  return identity.role == "coordinator" || identity.role == "learner" ||
         identity.role == "actor" || identity.role == "reward";
}

// Runs after the chain is verified against the roots.
class ServerIdentityVerifier final : public tls::ExternalCertificateVerifier {
 public:
  explicit ServerIdentityVerifier(PeerIdentity own) : own_(std::move(own)) {}

  bool Verify(tls::TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)> /*callback*/,
              grpc::Status* sync_status) override {
    const std::vector<grpc::string_ref> names = request->uri_names();
    std::string why = "its certificate has no single identity";
    if (names.size() == 1) {
      const absl::StatusOr<PeerIdentity> peer =
          ParseIdentity({names[0].data(), names[0].size()});
      if (peer.ok() && SameRun(*peer, own_) && MayServe(*peer)) {
        *sync_status = grpc::Status::OK;
        return true;
      }
      why = !peer.ok() ? std::string(peer.status().message())
            : SameRun(*peer, own_)
                ? absl::StrCat("role '", peer->role, "' serves nothing")
                : "it belongs to another run";
    }
    *sync_status = grpc::Status(grpc::StatusCode::UNAUTHENTICATED,
                                "server refused: " + why);
    return true;
  }
  void Cancel(tls::TlsCustomVerificationCheckRequest*) override {}

 private:
  const PeerIdentity own_;
};

// Sees the metadata of every call before its handler.
class Authorizer final : public grpc::AuthMetadataProcessor {
 public:
  explicit Authorizer(PeerIdentity own) : own_(std::move(own)) {}

  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata,
                       grpc::AuthContext* context, OutputMetadata* /*consumed*/,
                       OutputMetadata* /*response*/) override {
    const absl::StatusOr<PeerIdentity> peer = ParseIdentity(PeerUriOf(context));
    if (!peer.ok()) {
      return {grpc::StatusCode::UNAUTHENTICATED,
              std::string(peer.status().message())};
    }
    if (!SameRun(*peer, own_)) {
      return {grpc::StatusCode::PERMISSION_DENIED,
              "the certificate belongs to another run"};
    }
    const auto path = metadata.find(":path");
    const std::string method =
        path == metadata.end()
            ? ""
            : MethodOfPath({path->second.data(), path->second.size()});
    if (!RoleMay(peer->role, method)) {
      return {grpc::StatusCode::PERMISSION_DENIED,
              "role '" + peer->role + "' may not call " +
                  (method.empty() ? "this method" : method)};
    }
    return grpc::Status::OK;
  }

 private:
  const PeerIdentity own_;
};

// A key that others may read is a mistake that is better found at the start.
// A group that may read it is Kubernetes' fsGroup.
absl::Status CheckKeyMode(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  if ((info.st_mode & 0007) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": others may read it; expected mode 0400 or 0440"));
  }
  return absl::OkStatus();
}

struct ProcessTlsSlot {
  Mutex mutex;
  std::shared_ptr<const TlsIdentity> tls ABSL_GUARDED_BY(mutex);
};
ProcessTlsSlot& Slot() {
  static auto* slot = new ProcessTlsSlot();  // never destroyed
  return *slot;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const TlsIdentity>> TlsIdentity::Load(
    const std::string& dir) {
  const std::string key = JoinPath(dir, "tls.key");
  const std::string certificate = JoinPath(dir, "tls.crt");
  const std::string roots = JoinPath(dir, "ca.crt");
  COX_RETURN_IF_ERROR(CheckKeyMode(key));
  COX_ASSIGN_OR_RETURN(const std::string key_pem, Fs::Real().ReadAll(key));
  COX_ASSIGN_OR_RETURN(const std::string certificate_pem,
                       Fs::Real().ReadAll(certificate));
  COX_ASSIGN_OR_RETURN(const std::string roots_pem, Fs::Real().ReadAll(roots));
  COX_ASSIGN_OR_RETURN(const CertificateFacts facts,
                       InspectCertificate(certificate_pem, key_pem, roots_pem));
  auto out = std::shared_ptr<TlsIdentity>(new TlsIdentity());
  out->dir_ = dir;
  out->identity_ = facts.identity;
  out->provider_ = std::make_shared<tls::FileWatcherCertificateProvider>(
      key, certificate, roots, kRefreshSeconds);
  return std::shared_ptr<const TlsIdentity>(std::move(out));
}

std::shared_ptr<grpc::ServerCredentials> TlsIdentity::Server() const {
  tls::TlsServerCredentialsOptions options(provider_);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  std::shared_ptr<grpc::ServerCredentials> credentials =
      tls::TlsServerCredentials(options);
  credentials->SetAuthMetadataProcessor(
      std::make_shared<Authorizer>(identity_));
  return credentials;
}

std::shared_ptr<grpc::ChannelCredentials> TlsIdentity::Channel() const {
  tls::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(provider_);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_verify_server_certs(true);
  // Pods change their addresses; who they are stands in the certificate.
  options.set_check_call_host(false);
  options.set_certificate_verifier(
      tls::ExternalCertificateVerifier::Create<ServerIdentityVerifier>(
          identity_));
  return tls::TlsCredentials(options);
}

std::string PeerUriOf(const grpc::AuthContext* context) {
  if (context == nullptr || !context->IsPeerAuthenticated()) return "";
  const std::vector<grpc::string_ref> names =
      context->FindPropertyValues(GRPC_PEER_SPIFFE_ID_PROPERTY_NAME);
  // Several identities are none.
  return names.size() == 1 ? std::string(names[0].data(), names[0].size()) : "";
}

void SetProcessTls(std::shared_ptr<const TlsIdentity> tls) {
  MutexLock lock(&Slot().mutex);
  Slot().tls = std::move(tls);
}

std::shared_ptr<const TlsIdentity> ProcessTls() {
  MutexLock lock(&Slot().mutex);
  return Slot().tls;
}

absl::Status InitProcessTls(const std::string& dir, const std::string& role) {
  const char* environment = std::getenv("COX_TLS_DIR");
  const std::string chosen =
      !dir.empty() ? dir : (environment == nullptr ? "" : environment);
  if (chosen.empty()) return absl::OkStatus();
  // gRPC would log an error for every handshake that asks for a name which no
  // certificate has, such as a pod's address; the URI is what counts here.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  COX_ASSIGN_OR_RETURN(std::shared_ptr<const TlsIdentity> tls,
                       TlsIdentity::Load(chosen));
  if (!role.empty() && tls->identity().role != role) {
    return absl::FailedPreconditionError(
        absl::StrCat(chosen, "/tls.crt: expected the role '", role,
                     "', found '", tls->identity().role, "'"));
  }
  SetProcessTls(std::move(tls));
  return absl::OkStatus();
}

}  // namespace cox
