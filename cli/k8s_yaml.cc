#include "cli/k8s_yaml.h"

#include <algorithm>
#include <cctype>
#include <variant>

#include "absl/strings/numbers.h"
#include "lib/config/yaml_tree.h"

namespace cox {
namespace {

K8sObject ScalarValue(const YamlNode& node) {
  const std::string& text = node.text;
  if (node.quoted) return text;
  if (text == "true") return true;
  if (text == "false") return false;
  if (text == "null" || text == "~" || text.empty()) return nullptr;
  const bool digits = std::all_of(text.begin(), text.end(),
                                  [](char c) { return c >= '0' && c <= '9'; });
  if (digits && text.size() > 1 && text[0] == '0') {
    const bool octal =
        std::all_of(text.begin(), text.end(), [](char c) { return c <= '7'; });
    if (octal && text.size() < 12) return std::stoll(text, nullptr, 8);
    return text;
  }
  int64_t whole = 0;
  if (absl::SimpleAtoi(text, &whole)) return whole;
  double real = 0;
  const bool numeric =
      !text.empty() &&
      text.find_first_not_of("0123456789.eE+-") == std::string::npos;
  if (numeric && absl::SimpleAtod(text, &real)) return real;
  return text;
}

absl::StatusOr<K8sObject> ToJson(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return K8sObject(nullptr);
    case YamlNode::Kind::kScalar:
      return ScalarValue(node);
    case YamlNode::Kind::kList: {
      K8sObject out = K8sObject::array();
      for (const YamlNode& item : node.items) {
        COX_ASSIGN_OR_RETURN(K8sObject value, ToJson(item));
        out.push_back(std::move(value));
      }
      return out;
    }
    case YamlNode::Kind::kMap:
      break;
  }
  K8sObject out = K8sObject::object();
  for (const auto& [key, value] : node.fields) {
    if (out.contains(key.text)) {
      return absl::InvalidArgumentError(absl::StrCat(
          key.line, ":", key.column, ": duplicate key '", key.text, "'"));
    }
    COX_ASSIGN_OR_RETURN(out[key.text], ToJson(value));
  }
  return out;
}

// Whether `text` reads back as the same string without quotes.
bool IsPlain(const std::string& text) {
  if (text.empty()) return false;
  const auto safe = [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.' ||
           c == '/' || c == '=' || c == '$' || c == '(' || c == ')';
  };
  if (!std::all_of(text.begin(), text.end(), safe)) return false;
  if (std::isalpha(static_cast<unsigned char>(text[0])) == 0 &&
      text[0] != '/') {
    return false;
  }
  // Words that YAML 1.1 takes for booleans and null.
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  for (const char* word :
       {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}) {
    if (lower == word) return false;
  }
  return true;
}

std::string Scalar(const K8sObject& value) {
  if (value.is_string() && IsPlain(value.get<std::string>())) {
    return value.get<std::string>();
  }
  return value.dump();  // a JSON scalar is a YAML scalar
}

void Print(const K8sObject& value, const std::string& indent, std::string* out);

// What follows "key:" or "-" on the same line, or a block below it.
void PrintChild(const K8sObject& value, const std::string& indent,
                std::string* out) {
  if ((value.is_object() || value.is_array()) && !value.empty()) {
    *out += "\n";
    Print(value, indent, out);
    return;
  }
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    const bool block =
        text.find('\n') != std::string::npos && text.back() == '\n' &&
        text[0] != ' ' && text[0] != '\n' &&
        (text.size() < 2 || text[text.size() - 2] != '\n') &&
        std::all_of(text.begin(), text.end(), [](char c) {
          return c == '\n' || static_cast<unsigned char>(c) >= 32;
        });
    if (block) {
      *out += " |\n";
      size_t begin = 0;
      while (begin < text.size()) {
        const size_t end = text.find('\n', begin);
        const std::string line = text.substr(begin, end - begin);
        *out += line.empty() ? "\n" : indent + line + "\n";
        begin = end + 1;
      }
      return;
    }
  }
  *out += " " + (value.is_structured() ? value.dump() : Scalar(value)) + "\n";
}

void Print(const K8sObject& value, const std::string& indent,
           std::string* out) {
  if (value.is_object()) {
    for (const auto& [key, child] : value.items()) {
      *out += indent + Scalar(K8sObject(key)) + ":";
      PrintChild(child, indent + "  ", out);
    }
    return;
  }
  for (const K8sObject& child : value) {
    if (child.is_object() && !child.empty()) {
      std::string block;
      Print(child, indent + "  ", &block);
      block[indent.size()] = '-';
      *out += block;
    } else {
      *out += indent + "-";
      PrintChild(child, indent + "  ", out);
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<K8sObject>> ParseObjects(std::string_view text) {
  std::vector<K8sObject> objects;
  std::string document;
  const auto finish = [&]() -> absl::Status {
    std::variant<YamlNode, YamlError> tree = ParseYaml(document);
    document.clear();
    if (const auto* error = std::get_if<YamlError>(&tree)) {
      return absl::InvalidArgumentError(
          absl::StrCat("document ", objects.size() + 1, ": ", error->line, ":",
                       error->column, ": ", error->message));
    }
    COX_ASSIGN_OR_RETURN(K8sObject value, ToJson(std::get<YamlNode>(tree)));
    if (!value.is_null()) objects.push_back(std::move(value));
    return absl::OkStatus();
  };
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? "" : text.substr(end + 1);
    if (line == "---" || line.starts_with("--- ")) {
      COX_RETURN_IF_ERROR(finish());
    } else {
      document += std::string(line) + "\n";
    }
  }
  COX_RETURN_IF_ERROR(finish());
  return objects;
}

std::string PrintObjects(const std::vector<K8sObject>& objects) {
  std::string out;
  for (const K8sObject& object : objects) {
    if (!out.empty()) out += "---\n";
    Print(object, "", &out);
  }
  return out;
}

}  // namespace cox
