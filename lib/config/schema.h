#ifndef COX_LIB_CONFIG_SCHEMA_H_
#define COX_LIB_CONFIG_SCHEMA_H_

// Reflection over the schema of run.yaml: what load, check, print and explain
// share. Fields are scalars, lists of scalars or sections (messages).

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "cox/v1/run_config.pb.h"
#include "lib/base/status.h"

namespace cox::config {

using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;

const cox::v1::Setting& SettingOf(const FieldDescriptor& field);
bool IsSection(const FieldDescriptor& field);
bool IsNumber(const FieldDescriptor& field);  // element type, for lists

// "an integer", "a number", "true or false", "a text"; of one element.
std::string_view ExpectedName(const FieldDescriptor& field);
// "integer", "list of texts", "section".
std::string TypeName(const FieldDescriptor& field);

// A scalar as it is written in YAML.
struct ScalarText {
  std::string_view text;
  bool quoted = false;
};
// Sets (or, for a list, appends) the value. INVALID_ARGUMENT says "expected an
// integer, found 'x'". Numbers must be finite and fit the type.
absl::Status StoreScalar(ScalarText value, const FieldDescriptor& field,
                         Message* message);

// Sets every field to its default, recursively.
void ApplyDefaults(Message* message);

// Canonical YAML of one value that is no section; lists as [a, b]. Doubles
// have the fewest digits that read back the same.
std::string FormatValue(const Message& message, const FieldDescriptor& field);
std::string QuoteText(std::string_view text);

// Element `index` of a list (or the value itself): numbers as double, texts.
double NumberAt(const Message& message, const FieldDescriptor& field,
                int index);
std::string TextAt(const Message& message, const FieldDescriptor& field,
                   int index);
int CountOf(const Message& message, const FieldDescriptor& field);  // 1 if not
                                                                    // a list

struct Leaf {
  std::string path;  // "ppo.kl_coef"
  const Message* message = nullptr;
  const FieldDescriptor* field = nullptr;
  bool resumable = false;  // its own, or that of a section around it
};
// Every field that is no section, in schema order.
void ForEachLeaf(const Message& message,
                 const std::function<void(const Leaf&)>& visit);

// "prefix.name", or "name" at the top.
std::string JoinField(std::string_view prefix, std::string_view name);

// Levenshtein distance.
int EditDistance(std::string_view a, std::string_view b);
// " (did you mean 'kl_coef'?)" with a sibling that is near, or the full path
// of a field elsewhere with the same name; else "".
std::string DidYouMean(std::string_view name, const Descriptor& siblings);

}  // namespace cox::config

#endif  // COX_LIB_CONFIG_SCHEMA_H_
