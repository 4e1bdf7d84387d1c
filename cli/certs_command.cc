#include "cli/certs_command.h"

#include <cstdio>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/rpc/certificates.h"

namespace cox {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "cox certs: %s\n",
               std::string(status.message()).c_str());
  return kExitUsage;
}

absl::StatusOr<absl::Duration> Lifetime(const std::string& text) {
  absl::Duration lifetime;
  if (!absl::ParseDuration(text, &lifetime) || lifetime < absl::Seconds(1) ||
      lifetime > absl::Hours(24 * 3650)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--lifetime: expected 1s to 87600h, for example 24h, found '", text,
        "'"));
  }
  return lifetime;
}

}  // namespace

int InitCerts(const CertsOptions& options) {
  CertificateFolderOptions folder;
  folder.dir = options.dir;
  folder.run = options.run;
  folder.ns = options.ns;
  folder.trust_domain = options.trust_domain;
  folder.dns_names = options.dns_names;
  absl::StatusOr<absl::Duration> lifetime = Lifetime(options.lifetime);
  if (!lifetime.ok()) return Fail(lifetime.status());
  folder.lifetime = *lifetime;
  const absl::Status status = InitCertificates(folder);
  if (!status.ok()) return Fail(status);
  std::printf(
      "%s: authority and one certificate per role for run '%s', valid %s\n"
      "  one machine:  cox run run.yaml --tls %s\n"
      "  renew:        cox certs renew %s\n"
      "Keep %s/authority/ca.key away from the roles.\n",
      options.dir.c_str(), options.run.c_str(), options.lifetime.c_str(),
      options.dir.c_str(), options.dir.c_str(), options.dir.c_str());
  return kExitDone;
}

int RenewCerts(const CertsOptions& options) {
  absl::StatusOr<absl::Duration> lifetime = Lifetime(options.lifetime);
  if (!lifetime.ok()) return Fail(lifetime.status());
  const absl::Status status = RenewCertificates(options.dir, *lifetime);
  if (!status.ok()) return Fail(status);
  std::printf("%s: renewed, valid %s\n", options.dir.c_str(),
              options.lifetime.c_str());
  return kExitDone;
}

int ShowCerts(const CertsOptions& options) {
  Fs& fs = Fs::Real();
  const absl::StatusOr<std::vector<std::string>> names = fs.List(options.dir);
  if (!names.ok()) return Fail(names.status());
  int code = kExitDone;
  int found = 0;
  for (const std::string& name : *names) {
    const std::string dir = JoinPath(options.dir, name);
    if (!fs.Exists(JoinPath(dir, "tls.crt"))) continue;
    ++found;
    const absl::StatusOr<std::string> certificate =
        fs.ReadAll(JoinPath(dir, "tls.crt"));
    const absl::StatusOr<std::string> key =
        fs.ReadAll(JoinPath(dir, "tls.key"));
    const absl::StatusOr<std::string> roots =
        fs.ReadAll(JoinPath(dir, "ca.crt"));
    for (const auto* file : {&certificate, &key, &roots}) {
      if (!file->ok()) return Fail(file->status());
    }
    const absl::StatusOr<CertificateFacts> facts =
        InspectCertificate(*certificate, *key, *roots);
    if (!facts.ok()) return Fail(Annotate(facts.status(), dir));
    const bool expired = absl::Now() > facts->not_after;
    if (expired) code = kExitCheckFailed;
    std::printf("%-12s %s  %s %s\n", name.c_str(),
                FormatIdentity(facts->identity).c_str(),
                expired ? "EXPIRED" : "until",
                absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", facts->not_after,
                                 absl::UTCTimeZone())
                    .c_str());
  }
  if (found == 0) {
    return Fail(absl::NotFoundError(absl::StrCat(
        options.dir, ": no certificates; `cox certs init` makes them")));
  }
  return code;
}

}  // namespace cox
