#include "lib/rpc/certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <memory>
#include <system_error>

#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/rpc/authorization.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

template <auto Free>
struct FreeWith {
  template <typename T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};
using Bio = std::unique_ptr<BIO, FreeWith<BIO_free_all>>;
using Key = std::unique_ptr<EVP_PKEY, FreeWith<EVP_PKEY_free>>;
using Cert = std::unique_ptr<X509, FreeWith<X509_free>>;
using Extension =
    std::unique_ptr<X509_EXTENSION, FreeWith<X509_EXTENSION_free>>;
using Names = std::unique_ptr<GENERAL_NAMES, FreeWith<GENERAL_NAMES_free>>;

absl::Status SslError(const std::string& what) {
  char text[160] = "unknown reason";
  if (const unsigned long code = ERR_get_error(); code != 0) {
    ERR_error_string_n(code, text, sizeof text);
  }
  ERR_clear_error();
  return absl::InternalError(absl::StrCat(what, ": ", text));
}

Bio Reader(std::string_view text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

std::string Written(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<size_t>(size));
}

absl::StatusOr<Cert> ParseCertificate(std::string_view pem,
                                      const std::string& what) {
  Bio bio = Reader(pem);
  Cert cert(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  if (cert == nullptr) {
    ERR_clear_error();
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": expected a PEM certificate"));
  }
  return cert;
}

absl::StatusOr<Key> ParseKey(std::string_view pem, const std::string& what) {
  Bio bio = Reader(pem);
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr));
  if (key == nullptr) {
    ERR_clear_error();
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": expected a PEM private key"));
  }
  return key;
}

absl::StatusOr<KeyPair> ToPem(X509* cert, EVP_PKEY* key) {
  Bio cert_bio(BIO_new(BIO_s_mem()));
  Bio key_bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(cert_bio.get(), cert) != 1 ||
      PEM_write_bio_PKCS8PrivateKey(key_bio.get(), key, nullptr, nullptr, 0,
                                    nullptr, nullptr) != 1) {
    return SslError("writing PEM");
  }
  return KeyPair{Written(cert_bio.get()), Written(key_bio.get())};
}

// The parts that authority and leaf share.
absl::StatusOr<Cert> NewCertificate(EVP_PKEY* key, const std::string& name,
                                    absl::Duration lifetime,
                                    absl::Duration backdate) {
  Cert cert(X509_new());
  unsigned char serial[16];
  if (cert == nullptr || RAND_bytes(serial, sizeof serial) != 1) {
    return SslError("new certificate");
  }
  serial[0] = static_cast<unsigned char>((serial[0] & 0x3f) | 0x40);
  BIGNUM* number = BN_bin2bn(serial, sizeof serial, nullptr);
  BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert.get()));
  BN_free(number);
  X509_set_version(cert.get(), X509_VERSION_3);
  X509_gmtime_adj(X509_getm_notBefore(cert.get()),
                  -absl::ToInt64Seconds(backdate));
  X509_gmtime_adj(X509_getm_notAfter(cert.get()),
                  absl::ToInt64Seconds(lifetime));
  X509_NAME* subject = X509_get_subject_name(cert.get());
  // An upper bound of X.509 on common names.
  const std::string common = name.substr(0, 64);
  X509_NAME_add_entry_by_txt(
      subject, "CN", MBSTRING_UTF8,
      reinterpret_cast<const unsigned char*>(common.c_str()), -1, -1, 0);
  if (X509_set_pubkey(cert.get(), key) != 1) return SslError("public key");
  return cert;
}

absl::Status AddExtension(X509* cert, X509* issuer, int nid,
                          const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, cert, nullptr, nullptr, 0);
  Extension extension(
      X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (extension == nullptr || X509_add_ext(cert, extension.get(), -1) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError(
        absl::StrCat("certificate extension '", value, "' is not valid"));
  }
  return absl::OkStatus();
}

absl::Time FromAsn1(const ASN1_TIME* time) {
  std::tm parts = {};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return absl::InfinitePast();
  return absl::FromTimeT(timegm(&parts));
}

absl::StatusOr<PeerIdentity> IdentityIn(X509* cert) {
  Names names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(cert, NID_subject_alt_name, nullptr, nullptr)));
  std::vector<std::string> uris;
  const int count = names == nullptr ? 0 : sk_GENERAL_NAME_num(names.get());
  for (int i = 0; i < count; ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* uri = name->d.uniformResourceIdentifier;
    uris.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                      static_cast<size_t>(ASN1_STRING_length(uri)));
  }
  if (uris.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "certificate: expected exactly one URI name, found ", uris.size()));
  }
  return ParseIdentity(uris[0]);
}

// `path` becomes a link to `target`, atomically.
absl::Status ReplaceLink(const std::string& target, const std::string& path) {
  const std::string temporary = path + ".new";
  std::error_code error;
  std::filesystem::remove(temporary, error);
  std::filesystem::create_symlink(target, temporary, error);
  if (!error) std::filesystem::rename(temporary, path, error);
  if (error) {
    return absl::InternalError(absl::StrCat(path, ": ", error.message()));
  }
  return absl::OkStatus();
}

// As Kubernetes mounts a secret: the files lie in a folder of their own and the
// link `..data` moves to it in one rename, so that a reader never sees a key
// beside another key's certificate for longer than that instant.
absl::Status WriteLeaf(const std::string& dir, const KeyPair& leaf,
                       const std::string& authority_pem) {
  Fs& fs = Fs::Real();
  COX_RETURN_IF_ERROR(fs.MakeDirs(dir, 0700));
  const std::string version =
      absl::StrCat("..", Sha256Hex(leaf.key_pem).substr(0, 16));
  const std::string folder = JoinPath(dir, version);
  COX_RETURN_IF_ERROR(fs.MakeDirs(folder, 0700));
  const std::pair<const char*, const std::string*> files[] = {
      {"tls.key", &leaf.key_pem},
      {"tls.crt", &leaf.certificate_pem},
      {"ca.crt", &authority_pem}};
  for (const auto& [name, text] : files) {
    COX_RETURN_IF_ERROR(WriteFileDurably(fs, JoinPath(folder, name), *text));
  }
  const std::string data = JoinPath(dir, "..data");
  std::error_code error;
  const std::string old = std::filesystem::read_symlink(data, error).string();
  COX_RETURN_IF_ERROR(ReplaceLink(version, data));
  for (const auto& [name, text] : files) {
    COX_RETURN_IF_ERROR(
        ReplaceLink(JoinPath("..data", name), JoinPath(dir, name)));
  }
  if (!old.empty() && old != version) {
    COX_RETURN_IF_ERROR(fs.RemoveAll(JoinPath(dir, old)));
  }
  return fs.SyncDir(dir);
}

absl::Status IssueAll(const CertificateFolderOptions& options,
                      const KeyPair& authority) {
  for (const std::string& role : options.roles) {
    LeafRequest request;
    request.identity = {options.trust_domain, options.ns, options.run, role,
                        role};
    request.lifetime = options.lifetime;
    request.ip_addresses = {"127.0.0.1", "::1"};
    request.dns_names = options.dns_names;
    request.dns_names.push_back("localhost");
    COX_ASSIGN_OR_RETURN(const KeyPair leaf, IssueLeaf(authority, request));
    COX_RETURN_IF_ERROR(WriteLeaf(JoinPath(options.dir, role), leaf,
                                  authority.certificate_pem));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<KeyPair> MakeAuthority(const std::string& common_name,
                                      absl::Duration lifetime) {
  Key key(EVP_EC_gen("P-256"));
  if (key == nullptr) return SslError("new key");
  COX_ASSIGN_OR_RETURN(Cert cert, NewCertificate(key.get(), common_name,
                                                 lifetime, absl::Minutes(5)));
  X509_set_issuer_name(cert.get(), X509_get_subject_name(cert.get()));
  COX_RETURN_IF_ERROR(AddExtension(cert.get(), cert.get(),
                                   NID_basic_constraints,
                                   "critical,CA:TRUE,pathlen:0"));
  COX_RETURN_IF_ERROR(AddExtension(cert.get(), cert.get(), NID_key_usage,
                                   "critical,keyCertSign,cRLSign"));
  COX_RETURN_IF_ERROR(
      AddExtension(cert.get(), cert.get(), NID_subject_key_identifier, "hash"));
  if (X509_sign(cert.get(), key.get(), EVP_sha256()) == 0) {
    return SslError("signing");
  }
  return ToPem(cert.get(), key.get());
}

absl::StatusOr<KeyPair> IssueLeaf(const KeyPair& authority,
                                  const LeafRequest& request) {
  COX_ASSIGN_OR_RETURN(
      Cert issuer, ParseCertificate(authority.certificate_pem, "authority"));
  COX_ASSIGN_OR_RETURN(Key issuer_key,
                       ParseKey(authority.key_pem, "authority"));
  // What is issued must be accepted.
  COX_RETURN_IF_ERROR(ParseIdentity(FormatIdentity(request.identity)).status());
  Key key(EVP_EC_gen("P-256"));
  if (key == nullptr) return SslError("new key");
  COX_ASSIGN_OR_RETURN(Cert cert,
                       NewCertificate(key.get(), request.identity.name,
                                      request.lifetime, request.backdate));
  X509_set_issuer_name(cert.get(), X509_get_subject_name(issuer.get()));
  std::string names = "URI:" + FormatIdentity(request.identity);
  for (const std::string& dns : request.dns_names) names += ",DNS:" + dns;
  for (const std::string& ip : request.ip_addresses) names += ",IP:" + ip;
  const std::pair<int, std::string> extensions[] = {
      {NID_basic_constraints, "critical,CA:FALSE"},
      {NID_key_usage, "critical,digitalSignature"},
      {NID_ext_key_usage, "serverAuth,clientAuth"},
      {NID_subject_key_identifier, "hash"},
      {NID_authority_key_identifier, "keyid"},
      {NID_subject_alt_name, names}};
  for (const auto& [nid, value] : extensions) {
    COX_RETURN_IF_ERROR(AddExtension(cert.get(), issuer.get(), nid, value));
  }
  if (X509_sign(cert.get(), issuer_key.get(), EVP_sha256()) == 0) {
    return SslError("signing");
  }
  return ToPem(cert.get(), key.get());
}

absl::StatusOr<CertificateFacts> InspectCertificate(
    std::string_view certificate_pem, std::string_view key_pem,
    std::string_view roots_pem) {
  COX_ASSIGN_OR_RETURN(Cert cert, ParseCertificate(certificate_pem, "tls.crt"));
  COX_ASSIGN_OR_RETURN(Key key, ParseKey(key_pem, "tls.key"));
  COX_RETURN_IF_ERROR(ParseCertificate(roots_pem, "ca.crt").status());
  if (X509_check_private_key(cert.get(), key.get()) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError(
        "tls.key: expected the key of tls.crt, found another one");
  }
  CertificateFacts facts;
  COX_ASSIGN_OR_RETURN(facts.identity, IdentityIn(cert.get()));
  facts.not_before = FromAsn1(X509_get0_notBefore(cert.get()));
  facts.not_after = FromAsn1(X509_get0_notAfter(cert.get()));
  return facts;
}

absl::Status InitCertificates(const CertificateFolderOptions& given) {
  CertificateFolderOptions options = given;
  if (options.roles.empty()) {
    options.roles.assign(Roles().begin(), Roles().end());
  }
  Fs& fs = Fs::Real();
  const std::string dir = JoinPath(options.dir, "authority");
  if (fs.Exists(JoinPath(dir, "ca.key"))) {
    return absl::AlreadyExistsError(absl::StrCat(
        dir, ": there is an authority already; `cox certs renew` uses it"));
  }
  COX_RETURN_IF_ERROR(fs.MakeDirs(dir, 0700));
  // A root outlives its leaves by far; a run's certificates are short-lived.
  COX_ASSIGN_OR_RETURN(
      const KeyPair authority,
      MakeAuthority(absl::StrCat("coxswain ", options.run),
                    std::max(absl::Hours(24 * 365), options.lifetime)));
  nlohmann::json facts = {{"run", options.run},
                          {"namespace", options.ns},
                          {"trust_domain", options.trust_domain},
                          {"roles", options.roles},
                          {"dns_names", options.dns_names}};
  COX_RETURN_IF_ERROR(IssueAll(options, authority));
  COX_RETURN_IF_ERROR(WriteFileDurably(fs, JoinPath(options.dir, "run.json"),
                                       facts.dump(2) + "\n"));
  COX_RETURN_IF_ERROR(
      WriteFileDurably(fs, JoinPath(dir, "ca.crt"), authority.certificate_pem));
  return WriteFileDurably(fs, JoinPath(dir, "ca.key"), authority.key_pem);
}

absl::Status RenewCertificates(const std::string& dir,
                               absl::Duration lifetime) {
  Fs& fs = Fs::Real();
  CertificateFolderOptions options;
  options.dir = dir;
  options.lifetime = lifetime;
  COX_ASSIGN_OR_RETURN(const std::string text,
                       fs.ReadAll(JoinPath(dir, "run.json")));
  const nlohmann::json facts = nlohmann::json::parse(text, nullptr, false);
  const auto word = [&facts](const char* name) {
    return facts.is_object() && facts.contains(name) && facts[name].is_string()
               ? facts[name].get<std::string>()
               : std::string();
  };
  const auto words = [&facts](const char* name) {
    std::vector<std::string> out;
    if (!facts.is_object() || !facts.contains(name)) return out;
    for (const auto& item : facts[name]) {
      if (item.is_string()) out.push_back(item.get<std::string>());
    }
    return out;
  };
  options.run = word("run");
  options.ns = word("namespace");
  options.trust_domain = word("trust_domain");
  options.roles = words("roles");
  options.dns_names = words("dns_names");
  if (options.run.empty() || options.roles.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        JoinPath(dir, "run.json"), ": expected the file of `cox certs init`"));
  }
  KeyPair authority;
  COX_ASSIGN_OR_RETURN(authority.certificate_pem,
                       fs.ReadAll(JoinPath(dir, "authority/ca.crt")));
  COX_ASSIGN_OR_RETURN(authority.key_pem,
                       fs.ReadAll(JoinPath(dir, "authority/ca.key")));
  return IssueAll(options, authority);
}

}  // namespace cox
