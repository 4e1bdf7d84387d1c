#ifndef COX_LIB_RPC_IDENTITY_H_
#define COX_LIB_RPC_IDENTITY_H_

// Who a certificate speaks for. The identity is the URI name of the
// certificate (a SPIFFE id):
//   spiffe://<trust domain>/ns/<namespace>/run/<run>/role/<role>/<name>
// `run` is the run's name, so one run's actor is a stranger to another run.

#include <string>
#include <string_view>

#include "lib/base/status.h"

namespace cox {

struct PeerIdentity {
  std::string trust_domain;
  std::string ns;
  std::string run;
  std::string role;  // see lib/rpc/authorization.h
  std::string name;  // of the process or of its pool, for example "actor"

  friend bool operator==(const PeerIdentity&, const PeerIdentity&) = default;
};

std::string FormatIdentity(const PeerIdentity& identity);

// INVALID_ARGUMENT says which part is wrong. Each part has 1 to 64 characters
// out of [a-zA-Z0-9._-]; the whole text has at most 512.
absl::StatusOr<PeerIdentity> ParseIdentity(std::string_view uri);

// The role in a text that ParseIdentity accepts; of another text, anything.
std::string_view RoleInIdentity(std::string_view uri);

// Same trust domain, namespace and run.
bool SameRun(const PeerIdentity& a, const PeerIdentity& b);

}  // namespace cox

#endif  // COX_LIB_RPC_IDENTITY_H_
