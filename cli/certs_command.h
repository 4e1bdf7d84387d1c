#ifndef COX_CLI_CERTS_COMMAND_H_
#define COX_CLI_CERTS_COMMAND_H_

// `cox certs`: the certificates of a run, for laptops and tests. In a cluster
// cert-manager issues them (k8s/overlays/cert-manager).

#include <string>
#include <vector>

namespace cox {

struct CertsOptions {
  std::string dir;
  std::string run;
  std::string ns = "default";
  std::string trust_domain = "cox.local";
  std::vector<std::string> dns_names;
  std::string lifetime = "24h";  // a duration such as 30s, 24h
};

// Each returns the exit code.
int InitCerts(const CertsOptions& options);
int RenewCerts(const CertsOptions& options);
// One line per role: identity, valid until. 1 when one has expired.
int ShowCerts(const CertsOptions& options);

}  // namespace cox

#endif  // COX_CLI_CERTS_COMMAND_H_
