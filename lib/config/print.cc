// Canonical text of a configuration and what is derived from it: hash and
// differences.

#include "lib/base/hash.h"
#include "lib/config/config.h"
#include "lib/config/schema.h"

namespace cox {
namespace {

using config::FieldDescriptor;
using config::Leaf;
using config::Message;

void PrintSection(const Message& message, int indent, bool with_resumable,
                  std::string* out) {
  const auto* descriptor = message.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor& field = *descriptor->field(i);
    if (!with_resumable && config::SettingOf(field).resumable()) continue;
    absl::StrAppend(out, std::string(static_cast<size_t>(indent), ' '),
                    field.name(), ":");
    if (config::IsSection(field)) {
      absl::StrAppend(out, "\n");
      PrintSection(message.GetReflection()->GetMessage(message, &field),
                   indent + 2, with_resumable, out);
    } else {
      absl::StrAppend(out, " ", config::FormatValue(message, field), "\n");
    }
  }
}

std::vector<std::string> Differences(const cox::v1::RunConfig& a,
                                     const cox::v1::RunConfig& b,
                                     bool with_resumable) {
  // Both walks visit the same leaves in the same order.
  std::vector<std::string> values;
  config::ForEachLeaf(a, [&](const Leaf& leaf) {
    values.push_back(config::FormatValue(*leaf.message, *leaf.field));
  });
  std::vector<std::string> differences;
  size_t next = 0;
  config::ForEachLeaf(b, [&](const Leaf& leaf) {
    const std::string& before = values[next++];
    const std::string after = config::FormatValue(*leaf.message, *leaf.field);
    if (before == after || (leaf.resumable && !with_resumable)) return;
    differences.push_back(absl::StrCat(leaf.path, ": ", before, " -> ", after));
  });
  return differences;
}

}  // namespace

cox::v1::RunConfig DefaultConfig() {
  cox::v1::RunConfig result;
  config::ApplyDefaults(&result);
  return result;
}

std::string PrintConfig(const cox::v1::RunConfig& config) {
  std::string out;
  PrintSection(config, 0, /*with_resumable=*/true, &out);
  return out;
}

std::string ConfigHash(const cox::v1::RunConfig& config) {
  std::string text;
  PrintSection(config, 0, /*with_resumable=*/false, &text);
  return Sha256Hex(text);
}

std::vector<std::string> DiffConfigs(const cox::v1::RunConfig& a,
                                     const cox::v1::RunConfig& b) {
  return Differences(a, b, /*with_resumable=*/true);
}

std::vector<std::string> ResumableDiff(const cox::v1::RunConfig& recorded,
                                       const cox::v1::RunConfig& wanted) {
  return Differences(recorded, wanted, /*with_resumable=*/false);
}

bool HasStage(const cox::v1::RunConfig& config, std::string_view stage) {
  for (const std::string& name : config.stages()) {
    if (name == stage) return true;
  }
  return false;
}

}  // namespace cox
