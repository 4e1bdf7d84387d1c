#ifndef COX_LIB_RPC_CERTIFICATES_H_
#define COX_LIB_RPC_CERTIFICATES_H_

// X.509 certificates of a run: a small authority for laptops and tests (in a
// cluster cert-manager does this), and checks of what is found in files.
// Keys are ECDSA P-256, signatures SHA-256, everything PEM.

#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/status.h"
#include "lib/rpc/identity.h"

namespace cox {

struct KeyPair {
  std::string certificate_pem;
  std::string key_pem;
};

struct LeafRequest {
  PeerIdentity identity;               // the URI name
  std::vector<std::string> dns_names;  // for clients that check names (KEDA)
  std::vector<std::string> ip_addresses;
  absl::Duration lifetime = absl::Hours(24);
  // Valid from this long ago: clocks of nodes differ.
  absl::Duration backdate = absl::Minutes(5);
};

// A self-signed root that signs leaves only (path length 0).
absl::StatusOr<KeyPair> MakeAuthority(const std::string& common_name,
                                      absl::Duration lifetime);
// A certificate for servers and clients, signed by `authority`.
// INVALID_ARGUMENT: a bad authority or address.
absl::StatusOr<KeyPair> IssueLeaf(const KeyPair& authority,
                                  const LeafRequest& request);

struct CertificateFacts {
  PeerIdentity identity;
  absl::Time not_before;
  absl::Time not_after;
};

// The leaf's facts. INVALID_ARGUMENT: no PEM, no or several identities, a key
// of another certificate, no root. Expiry is no error: a process that waits for
// its renewal must be able to start.
absl::StatusOr<CertificateFacts> InspectCertificate(
    std::string_view certificate_pem, std::string_view key_pem,
    std::string_view roots_pem);

// Files of a folder that `cox certs init` makes:
//   authority/ca.crt, authority/ca.key, run.json
//   <role>/ca.crt, <role>/tls.crt, <role>/tls.key      (one per role)
struct CertificateFolderOptions {
  std::string dir;
  std::string run;
  std::string ns = "default";
  std::string trust_domain = "cox.local";
  std::vector<std::string> roles;      // empty = Roles()
  std::vector<std::string> dns_names;  // beside localhost
  absl::Duration lifetime = absl::Hours(24);
};

// ALREADY_EXISTS when the folder has an authority.
absl::Status InitCertificates(const CertificateFolderOptions& options);
// New certificates and keys of all roles from the folder's authority; the files
// of a role change together (one rename of a link).
absl::Status RenewCertificates(const std::string& dir, absl::Duration lifetime);

}  // namespace cox

#endif  // COX_LIB_RPC_CERTIFICATES_H_
