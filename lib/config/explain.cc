// Explain: the schema's documentation as text.

#include <string>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "lib/config/config.h"
#include "lib/config/schema.h"

namespace cox {
namespace {

using config::Descriptor;
using config::FieldDescriptor;

std::string Number(double value) {
  // Bounds are written as short decimals in the schema.
  return absl::StrCat(value);
}

// "number, default 0.05, at least 0", without the doc.
std::string Facts(const FieldDescriptor& field) {
  const cox::v1::Setting& setting = config::SettingOf(field);
  std::vector<std::string> facts = {config::TypeName(field)};
  if (!config::IsSection(field)) {
    if (field.is_repeated()) {
      facts.push_back("default []");
    } else if (!setting.def().empty()) {
      facts.push_back(absl::StrCat("default ", setting.def()));
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      facts.push_back("default empty");
    } else {
      facts.push_back(field.cpp_type() == FieldDescriptor::CPPTYPE_BOOL
                          ? "default false"
                          : "default 0");
    }
  }
  if (setting.has_min() && setting.has_max()) {
    facts.push_back(absl::StrCat("from ", Number(setting.min()), " to ",
                                 Number(setting.max())));
  } else if (setting.has_min()) {
    facts.push_back(absl::StrCat("at least ", Number(setting.min())));
  } else if (setting.has_max()) {
    facts.push_back(absl::StrCat("at most ", Number(setting.max())));
  }
  if (!setting.choices().empty()) {
    facts.push_back(absl::StrCat(
        "one of ", absl::StrReplaceAll(setting.choices(), {{"|", " | "}})));
  }
  if (setting.path()) facts.push_back("path relative to the file");
  if (setting.resumable()) facts.push_back("may change on resume");
  return absl::StrJoin(facts, ", ");
}

void ExplainField(const FieldDescriptor& field, const std::string& path,
                  std::string* out) {
  absl::StrAppend(out, path, "  (", Facts(field), ")\n    ",
                  config::SettingOf(field).doc(), "\n");
}

void ExplainSection(const Descriptor& descriptor, const std::string& prefix,
                    std::string* out) {
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    const std::string path = config::JoinField(prefix, field.name());
    ExplainField(field, path, out);
    if (config::IsSection(field)) {
      ExplainSection(*field.message_type(), path, out);
    }
  }
}

}  // namespace

absl::StatusOr<std::string> Explain(std::string_view field) {
  const Descriptor* descriptor = cox::v1::RunConfig::descriptor();
  const FieldDescriptor* found = nullptr;
  std::string prefix;
  for (size_t start = 0; start <= field.size();) {
    const size_t dot = field.find('.', start);
    const std::string name(
        field.substr(start, dot == field.npos ? dot : dot - start));
    found = descriptor == nullptr ? nullptr : descriptor->FindFieldByName(name);
    if (found == nullptr) {
      return absl::NotFoundError(absl::StrCat(
          "unknown field '", std::string(field), "'",
          descriptor == nullptr ? absl::StrCat("; '", prefix, "' has no fields")
                                : config::DidYouMean(name, *descriptor)));
    }
    prefix = config::JoinField(prefix, name);
    descriptor = config::IsSection(*found) ? found->message_type() : nullptr;
    if (dot == field.npos) break;
    start = dot + 1;
  }
  std::string out;
  ExplainField(*found, prefix, &out);
  if (descriptor != nullptr) ExplainSection(*descriptor, prefix, &out);
  return out;
}

std::string ExplainAll() {
  std::string out;
  ExplainSection(*cox::v1::RunConfig::descriptor(), "", &out);
  return out;
}

}  // namespace cox
