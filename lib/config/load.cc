// LoadConfig: file -> tree -> message, then overrides, paths and checks.

#include <algorithm>
#include <climits>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>
#include <variant>

#include "absl/strings/str_join.h"
#include "lib/base/fs.h"
#include "lib/config/config.h"
#include "lib/config/files.h"
#include "lib/config/profiles.h"
#include "lib/config/schema.h"
#include "lib/config/yaml_tree.h"

namespace cox {
namespace {

using config::FieldDescriptor;
using config::Message;
using config::ScalarText;

constexpr uint64_t kMaxFileBytes = 1 << 20;

// Where a value was written; `line` INT_MAX for overrides and unset fields, so
// that sorting puts them after the file's lines.
struct Place {
  int line = INT_MAX;
  int column = 0;
  std::string label;  // "run.yaml:14:5", "override 'a.b=1'", "run.yaml"
};

class Loader {
 public:
  explicit Loader(std::string file_label) : file_label_(std::move(file_label)) {
    config::ApplyDefaults(&config_);
  }

  void ApplyText(std::string_view text) {
    const auto parsed = ParseYaml(text);
    if (const auto* error = std::get_if<YamlError>(&parsed)) {
      Report({error->line, error->column,
              absl::StrCat(file_label_, ":", error->line, ":", error->column)},
             error->message);
      return;
    }
    const YamlNode& root = std::get<YamlNode>(parsed);
    if (root.kind == YamlNode::Kind::kNull) return;
    if (root.kind != YamlNode::Kind::kMap) {
      Report(PlaceOf(root), "expected fields such as 'name: run'");
      return;
    }
    ApplySection(root, "", &config_);
  }

  // Settings below those of the file: they have no place in it.
  void ApplyBelow(std::string_view yaml) {
    ApplyText(yaml);
    places_.clear();
  }

  void ApplyOverride(const std::string& text) {
    const Place place{INT_MAX, 0, absl::StrCat("override '", text, "'")};
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      Report(place, "expected field=value");
      return;
    }
    const auto parsed = ParseYaml(std::string_view(text).substr(equals + 1));
    if (const auto* error = std::get_if<YamlError>(&parsed)) {
      Report(place, error->message);
      return;
    }
    override_ = &place;
    Descend(text.substr(0, equals), std::get<YamlNode>(parsed));
    override_ = nullptr;
  }

  // Relative paths -> absolute ones below `base`.
  void ResolvePaths(const std::string& base) { Resolve(base, &config_); }

  void ReportIssues(const std::vector<ConfigIssue>& issues) {
    for (const ConfigIssue& issue : issues) {
      Report(PlaceOfField(issue.field),
             absl::StrCat(issue.field, ": ", issue.message));
    }
  }

  bool ok() const { return problems_.empty(); }
  const cox::v1::RunConfig& config() const { return config_; }

  absl::Status status() {
    if (problems_.empty()) return absl::OkStatus();
    std::stable_sort(problems_.begin(), problems_.end(),
                     [](const Problem& a, const Problem& b) {
                       return std::pair(a.place.line, a.place.column) <
                              std::pair(b.place.line, b.place.column);
                     });
    std::vector<std::string> lines;
    for (const Problem& problem : problems_) {
      lines.push_back(absl::StrCat(problem.place.label, ": ", problem.message));
    }
    return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
  }

 private:
  struct Problem {
    Place place;
    std::string message;
  };

  void Report(Place place, std::string message) {
    problems_.push_back({std::move(place), std::move(message)});
  }

  Place PlaceOf(const YamlNode& node) const {
    if (override_ != nullptr) return *override_;
    return {node.line, node.column,
            absl::StrCat(file_label_, ":", node.line, ":", node.column)};
  }

  // The place of "stages[1]", else of "stages", else the file as a whole.
  Place PlaceOfField(const std::string& field) const {
    auto it = places_.find(field);
    if (it == places_.end()) {
      it = places_.find(field.substr(0, field.find('[')));
    }
    return it == places_.end() ? Place{INT_MAX, 0, file_label_} : it->second;
  }

  // Follows "ppo.optimizer.lr" to its section and stores the value there.
  void Descend(const std::string& path, const YamlNode& value) {
    Message* message = &config_;
    std::string prefix;
    size_t start = 0;
    while (true) {
      const size_t dot = path.find('.', start);
      YamlNode key;
      key.text = path.substr(start, dot == path.npos ? dot : dot - start);
      const FieldDescriptor* field = FindField(key, prefix, *message);
      if (field == nullptr) return;
      if (dot == path.npos) {
        ApplyField(key, value, *field, prefix, message);
        return;
      }
      prefix = config::JoinField(prefix, key.text);
      if (!config::IsSection(*field)) {
        Report(*override_, absl::StrCat("'", prefix, "' has no fields"));
        return;
      }
      message = message->GetReflection()->MutableMessage(message, field);
      start = dot + 1;
    }
  }

  const FieldDescriptor* FindField(const YamlNode& key,
                                   const std::string& prefix,
                                   const Message& message) {
    const auto* descriptor = message.GetDescriptor();
    const FieldDescriptor* field = descriptor->FindFieldByName(key.text);
    if (field == nullptr) {
      Report(
          PlaceOf(key),
          absl::StrCat("unknown field '", config::JoinField(prefix, key.text),
                       "'", config::DidYouMean(key.text, *descriptor)));
    }
    return field;
  }

  void ApplySection(const YamlNode& node, const std::string& prefix,
                    Message* message) {
    std::map<std::string, const YamlNode*> seen;
    for (const auto& [key, value] : node.fields) {
      const FieldDescriptor* field = FindField(key, prefix, *message);
      if (field == nullptr) continue;
      const auto [first, inserted] = seen.emplace(key.text, &key);
      if (!inserted) {
        Report(PlaceOf(key),
               absl::StrCat("duplicate field '",
                            config::JoinField(prefix, key.text),
                            "' (first at line ", first->second->line, ")"));
        continue;
      }
      ApplyField(key, value, *field, prefix, message);
    }
  }

  void ApplyField(const YamlNode& key, const YamlNode& value,
                  const FieldDescriptor& field, const std::string& prefix,
                  Message* message) {
    const std::string path = config::JoinField(prefix, field.name());
    // An empty value has no position of its own.
    const bool is_null = value.kind == YamlNode::Kind::kNull;
    const Place place = PlaceOf(is_null ? key : value);
    places_[path] = place;
    if (config::IsSection(field)) {
      if (is_null) return;  // "ppo:" alone keeps the defaults
      if (value.kind != YamlNode::Kind::kMap) {
        Mismatch(place, path, "a section", value);
        return;
      }
      ApplySection(value, path,
                   message->GetReflection()->MutableMessage(message, &field));
      return;
    }
    if (field.is_repeated()) {
      if (value.kind != YamlNode::Kind::kList) {
        Mismatch(place, path, "a list such as [a, b]", value);
        return;
      }
      message->GetReflection()->ClearField(message, &field);
      for (size_t i = 0; i < value.items.size(); ++i) {
        const std::string element = absl::StrCat(path, "[", i, "]");
        places_[element] = PlaceOf(value.items[i]);
        StoreValue(value.items[i], places_[element], element, field, message);
      }
      return;
    }
    StoreValue(value, place, path, field, message);
  }

  void StoreValue(const YamlNode& value, const Place& place,
                  const std::string& path, const FieldDescriptor& field,
                  Message* message) {
    // "init:" means the empty text; numbers have no such value.
    const bool empty_text = value.kind == YamlNode::Kind::kNull &&
                            field.cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    if (value.kind != YamlNode::Kind::kScalar && !empty_text) {
      Mismatch(place, path, config::ExpectedName(field), value);
      return;
    }
    const absl::Status status = config::StoreScalar(
        ScalarText{value.text, value.quoted}, field, message);
    if (!status.ok()) {
      Report(place, absl::StrCat(path, ": ", std::string(status.message())));
    }
  }

  void Mismatch(const Place& place, const std::string& path,
                std::string_view expected, const YamlNode& found) {
    std::string what;
    switch (found.kind) {
      case YamlNode::Kind::kNull:
        what = "nothing";
        break;
      case YamlNode::Kind::kScalar:
        what = absl::StrCat("'", found.text.substr(0, 100), "'");
        break;
      case YamlNode::Kind::kList:
        what = "a list";
        break;
      case YamlNode::Kind::kMap:
        what = "a section";
        break;
    }
    Report(place, absl::StrCat(path, ": expected ", std::string(expected),
                               ", found ", what));
  }

  static std::string Absolute(const std::string& base,
                              const std::string& path) {
    if (path.empty()) return path;
    return (std::filesystem::path(base) / path).lexically_normal().string();
  }

  static void Resolve(const std::string& base, Message* message) {
    const auto* descriptor = message->GetDescriptor();
    const auto* reflection = message->GetReflection();
    for (int i = 0; i < descriptor->field_count(); ++i) {
      const FieldDescriptor& field = *descriptor->field(i);
      if (config::IsSection(field)) {
        Resolve(base, reflection->MutableMessage(message, &field));
      } else if (config::SettingOf(field).path()) {
        for (int k = 0; k < config::CountOf(*message, field); ++k) {
          const std::string path =
              Absolute(base, config::TextAt(*message, field, k));
          field.is_repeated()
              ? reflection->SetRepeatedString(message, &field, k, path)
              : reflection->SetString(message, &field, path);
        }
      }
    }
  }

  std::string file_label_;
  cox::v1::RunConfig config_;
  std::map<std::string, Place> places_;
  std::vector<Problem> problems_;
  const Place* override_ = nullptr;  // set while one is applied
};

absl::StatusOr<std::string> ReadText(const LoadOptions& options) {
  if (!options.yaml_text.empty()) return options.yaml_text;
  if (options.path.empty()) {
    return absl::InvalidArgumentError("no configuration file given");
  }
  Fs& fs = Fs::Real();
  COX_ASSIGN_OR_RETURN(const uint64_t bytes, fs.FileSize(options.path));
  if (bytes > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(options.path, ": ", bytes,
                                                   " bytes, at most ",
                                                   kMaxFileBytes, " are read"));
  }
  return fs.ReadAll(options.path);
}

// Absolute folder that relative paths start from.
absl::StatusOr<std::string> BaseFolder(const std::string& path) {
  std::error_code error;
  const std::filesystem::path file =
      std::filesystem::absolute(path.empty() ? "x" : path, error);
  if (error) {
    return absl::InternalError(
        absl::StrCat("working folder: ", error.message()));
  }
  return file.lexically_normal().parent_path().string();
}

}  // namespace

absl::StatusOr<cox::v1::RunConfig> LoadConfig(const LoadOptions& options) {
  COX_ASSIGN_OR_RETURN(const std::string text, ReadText(options));
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("configuration of ", text.size(), " bytes, at most ",
                     kMaxFileBytes, " are read"));
  }
  COX_ASSIGN_OR_RETURN(const std::string base, BaseFolder(options.path));
  const std::string label = options.path.empty() ? "config" : options.path;
  const auto load = [&](std::string_view family, std::string_view profile) {
    Loader loader(label);
    loader.ApplyBelow(family);
    loader.ApplyBelow(profile);
    loader.ApplyText(text);
    for (const std::string& text_override : options.overrides) {
      loader.ApplyOverride(text_override);
    }
    return loader;
  };
  Loader loader = load("", "");
  // What lies below can only be known once everything was read.
  const std::string_view family =
      config::FamilyYaml(loader.config().model().type());
  const std::string_view profile =
      config::ProfileYaml(loader.config().ppo().profile());
  if (loader.ok() && !options.recorded &&
      !(family.empty() && profile.empty())) {
    loader = load(family, profile);
  }
  // What a broken file meant can only be guessed: check values afterwards.
  COX_RETURN_IF_ERROR(loader.status());
  loader.ResolvePaths(base);
  loader.ReportIssues(CheckConfig(loader.config()));
  if (options.check_files) {
    loader.ReportIssues(config::CheckFiles(loader.config(), Fs::Real()));
  }
  COX_RETURN_IF_ERROR(loader.status());
  return loader.config();
}

}  // namespace cox
