#include "lib/config/yaml_tree.h"

#include <algorithm>
#include <exception>
#include <map>
#include <optional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "yaml-cpp/eventhandler.h"
#include "yaml-cpp/exceptions.h"
#include "yaml-cpp/mark.h"
#include "yaml-cpp/parser.h"

namespace cox {
namespace {

// Builds the tree from parser events. After the first error it ignores the
// rest, so memory stays bounded by the limits.
class TreeBuilder : public YAML::EventHandler {
 public:
  const std::optional<YamlError>& error() const { return error_; }
  YamlNode TakeRoot() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) {
      Fail(mark, "a second document; one file holds one configuration");
    }
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Leaf(mark, anchor, YamlNode::Kind::kNull, "", /*quoted=*/false);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag,
                YAML::anchor_t anchor, const std::string& value) override {
    // yaml-cpp tags plain scalars "?" and quoted ones "!".
    Leaf(mark, anchor, YamlNode::Kind::kScalar, value,
         /*quoted=*/!tag.empty() && tag != "?");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (error_.has_value()) return;
    const auto it = anchors_.find(anchor);
    if (it == anchors_.end()) {
      Fail(mark, "an alias inside its own anchor");
      return;
    }
    const int levels = Depth(it->second) - 1;
    if (static_cast<int>(open_.size()) + levels >= kMaxYamlDepth) {
      FailDepth(mark);
      return;
    }
    nodes_ += Size(it->second) - 1;  // Attach counts one
    if (!CountNode(mark)) return;
    YamlNode copy = it->second;
    Attach(std::move(copy));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&,
                       YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, anchor, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override { CloseTop(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&,
                  YAML::anchor_t anchor, YAML::EmitterStyle::value) override {
    Open(mark, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { CloseTop(); }

 private:
  struct OpenNode {
    YamlNode node;
    YAML::anchor_t anchor = 0;
    std::optional<YamlNode> key;  // a map's key that waits for its value
  };

  void Fail(const YAML::Mark& mark, std::string message) {
    if (error_.has_value()) return;
    error_ = YamlError{mark.line + 1, mark.column + 1, std::move(message)};
  }
  void FailDepth(const YAML::Mark& mark) {
    Fail(mark, absl::StrCat("nested deeper than ", kMaxYamlDepth, " levels"));
  }

  bool CountNode(const YAML::Mark& mark) {
    if (++nodes_ <= kMaxYamlNodes) return true;
    Fail(mark, absl::StrCat("more than ", kMaxYamlNodes, " nodes"));
    return false;
  }

  static YamlNode Make(const YAML::Mark& mark, YamlNode::Kind kind) {
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    node.column = mark.column + 1;
    return node;
  }

  void Leaf(const YAML::Mark& mark, YAML::anchor_t anchor, YamlNode::Kind kind,
            const std::string& text, bool quoted) {
    if (error_.has_value() || !CountNode(mark)) return;
    YamlNode node = Make(mark, kind);
    node.text = text;
    node.quoted = quoted;
    if (anchor != 0) anchors_[anchor] = node;
    Attach(std::move(node));
  }

  void Open(const YAML::Mark& mark, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    if (error_.has_value() || !CountNode(mark)) return;
    if (static_cast<int>(open_.size()) >= kMaxYamlDepth) {
      FailDepth(mark);
      return;
    }
    OpenNode top;
    top.node = Make(mark, kind);
    top.anchor = anchor;
    open_.push_back(std::move(top));
  }

  void CloseTop() {
    if (error_.has_value()) return;
    OpenNode top = std::move(open_.back());
    open_.pop_back();
    if (top.anchor != 0) anchors_[top.anchor] = top.node;
    Attach(std::move(top.node));
  }

  void Attach(YamlNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    OpenNode& top = open_.back();
    if (top.node.kind == YamlNode::Kind::kList) {
      top.node.items.push_back(std::move(node));
    } else if (top.key.has_value()) {
      top.node.fields.emplace_back(std::move(*top.key), std::move(node));
      top.key.reset();
    } else if (node.kind != YamlNode::Kind::kScalar) {
      YAML::Mark mark;
      mark.line = node.line - 1;
      mark.column = node.column - 1;
      Fail(mark, "expected a field name");
    } else {
      top.key = std::move(node);
    }
  }

  static int Size(const YamlNode& node) {
    int size = 1;
    for (const YamlNode& item : node.items) size += Size(item);
    for (const auto& [key, value] : node.fields) size += 1 + Size(value);
    return size;
  }
  static int Depth(const YamlNode& node) {
    int depth = 0;
    for (const YamlNode& item : node.items) {
      depth = std::max(depth, Depth(item));
    }
    for (const auto& [key, value] : node.fields) {
      depth = std::max(depth, Depth(value));
    }
    return depth + 1;
  }

  YamlNode root_;
  std::vector<OpenNode> open_;
  std::map<YAML::anchor_t, YamlNode> anchors_;
  int nodes_ = 0;
  int documents_ = 0;
  std::optional<YamlError> error_;
};

}  // namespace

std::variant<YamlNode, YamlError> ParseYaml(std::string_view text) {
  TreeBuilder builder;
  std::istringstream in{std::string(text)};
  try {
    YAML::Parser parser(in);
    while (!builder.error().has_value() && parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& e) {
    if (!builder.error().has_value()) {
      return YamlError{e.mark.line + 1, e.mark.column + 1, e.msg};
    }
  } catch (const std::exception& e) {
    return YamlError{1, 1, absl::StrCat("cannot be parsed: ", e.what())};
  }
  if (builder.error().has_value()) return *builder.error();
  return builder.TakeRoot();
}

}  // namespace cox
