#include "lib/rpc/identity.h"

#include <algorithm>
#include <array>
#include <vector>

namespace cox {
namespace {

constexpr std::string_view kScheme = "spiffe://";
constexpr size_t kMaxUri = 512;
constexpr size_t kMaxPart = 64;

bool IsPart(std::string_view text) {
  return !text.empty() && text.size() <= kMaxPart &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
         });
}

}  // namespace

std::string FormatIdentity(const PeerIdentity& identity) {
  return absl::StrCat(std::string(kScheme), identity.trust_domain, "/ns/",
                      identity.ns, "/run/", identity.run, "/role/",
                      identity.role, "/", identity.name);
}

absl::StatusOr<PeerIdentity> ParseIdentity(std::string_view uri) {
  if (uri.size() > kMaxUri || !uri.starts_with(kScheme)) {
    return absl::InvalidArgumentError(
        "identity: expected spiffe://DOMAIN/ns/NS/run/RUN/role/ROLE/NAME");
  }
  std::vector<std::string_view> parts;
  std::string_view rest = uri.substr(kScheme.size());
  for (size_t slash = 0; slash != std::string_view::npos;) {
    slash = rest.find('/');
    parts.push_back(rest.substr(0, slash));
    if (slash != std::string_view::npos) rest = rest.substr(slash + 1);
  }
  // Domain, then name and value by turns; the last value has two parts.
  if (parts.size() != 8 || parts[1] != "ns" || parts[3] != "run" ||
      parts[5] != "role") {
    return absl::InvalidArgumentError(
        "identity: expected spiffe://DOMAIN/ns/NS/run/RUN/role/ROLE/NAME");
  }
  constexpr std::array<std::pair<size_t, const char*>, 5> kChecked = {
      {{0, "trust domain"},
       {2, "namespace"},
       {4, "run"},
       {6, "role"},
       {7, "name"}}};
  for (const auto& [index, what] : kChecked) {
    if (!IsPart(parts[index])) {
      return absl::InvalidArgumentError(
          absl::StrCat("identity: ", what,
                       ": expected 1 to 64 characters out of [a-zA-Z0-9._-]"));
    }
  }
  return PeerIdentity{std::string(parts[0]), std::string(parts[2]),
                      std::string(parts[4]), std::string(parts[6]),
                      std::string(parts[7])};
}

std::string_view RoleInIdentity(std::string_view uri) {
  uri = uri.substr(0, uri.rfind('/'));  // without the name
  const size_t slash = uri.rfind('/');
  return slash == std::string_view::npos ? "" : uri.substr(slash + 1);
}

bool SameRun(const PeerIdentity& a, const PeerIdentity& b) {
  return a.trust_domain == b.trust_domain && a.ns == b.ns && a.run == b.run;
}

}  // namespace cox
