#ifndef COX_LIB_RPC_TLS_H_
#define COX_LIB_RPC_TLS_H_

// A process's certificate, kept up to date from files.
//
// The folder holds the three files of a Kubernetes TLS secret as cert-manager
// writes it: ca.crt (roots), tls.crt (chain, leaf first), tls.key. They are
// read again every second: a replaced certificate serves new handshakes, open
// connections go on.

#include <memory>
#include <string>

#include "grpcpp/security/auth_context.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "lib/base/status.h"
#include "lib/rpc/identity.h"

namespace cox {

// Immutable; thread-safe.
class TlsIdentity {
 public:
  // NOT_FOUND: a file is missing. INVALID_ARGUMENT: no certificate, a key that
  // does not fit it, no or several identities in it, a key file that others
  // may read.
  static absl::StatusOr<std::shared_ptr<const TlsIdentity>> Load(
      const std::string& dir);

  const PeerIdentity& identity() const { return identity_; }
  const std::string& dir() const { return dir_; }

  // Requires a client certificate of the same run whose role may call the
  // method (lib/rpc/authorization.h); anything else is refused before the
  // handler: no certificate or a bad one in the handshake, a wrong role or
  // run with PERMISSION_DENIED.
  std::shared_ptr<grpc::ServerCredentials> Server() const;
  // Accepts a server of the same run that is coordinator, learner, actor or
  // reward, whatever its address.
  std::shared_ptr<grpc::ChannelCredentials> Channel() const;

 private:
  TlsIdentity() = default;
  std::string dir_;
  PeerIdentity identity_;
  std::shared_ptr<grpc::experimental::CertificateProviderInterface> provider_;
};

// The identity (lib/rpc/identity.h) of the peer of a call as its certificate
// has it; "" on a connection without TLS. Server() has parsed and judged it
// before the handler runs, so nobody has to parse it again.
std::string PeerUriOf(const grpc::AuthContext* context);

// The certificate of this process, which every server and channel uses that is
// not given another. Set once, before the first of them; null = plaintext.
void SetProcessTls(std::shared_ptr<const TlsIdentity> tls);
std::shared_ptr<const TlsIdentity> ProcessTls();

// Loads the folder of --tls, or of COX_TLS_DIR when `dir` is empty, and sets
// it; OK without doing anything when both are empty. FAILED_PRECONDITION when
// the certificate is of another role than `role` ("" = any).
absl::Status InitProcessTls(const std::string& dir, const std::string& role);

}  // namespace cox

#endif  // COX_LIB_RPC_TLS_H_
