#ifndef COX_LIB_CONFIG_YAML_TREE_H_
#define COX_LIB_CONFIG_YAML_TREE_H_

// YAML text as a plain tree with positions. yaml_tree.cc is the only file that
// includes yaml-cpp and catches what it throws.

#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace cox {

inline constexpr int kMaxYamlDepth = 32;
// Nodes with aliases expanded.
inline constexpr int kMaxYamlNodes = 100000;

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string text;     // kScalar
  bool quoted = false;  // kScalar: written in quotes or as a block
  int line = 1;         // 1-based
  int column = 1;
  std::vector<YamlNode> items;  // kList
  // kMap, in the order of the file, duplicates included; keys are scalars.
  std::vector<std::pair<YamlNode, YamlNode>> fields;
};

struct YamlError {
  int line = 1;
  int column = 1;
  std::string message;
};

// One document (none = null) with aliases expanded. A YamlError for: syntax, a
// second document, keys that are no scalars, more than kMaxYamlDepth levels or
// kMaxYamlNodes nodes, an alias inside its own anchor. Not a Status because
// the caller needs the position.
std::variant<YamlNode, YamlError> ParseYaml(std::string_view text);

}  // namespace cox

#endif  // COX_LIB_CONFIG_YAML_TREE_H_
