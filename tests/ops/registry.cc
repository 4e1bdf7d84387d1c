#include "tests/ops/registry.h"

#include <utility>

namespace cox::ops {
namespace {

// Deeper input would overflow the stack of recursive JSON code.
constexpr int kMaxDepth = 64;

bool TooDeep(std::string_view line) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (depth > kMaxDepth) return true;
  }
  return false;
}

absl::StatusOr<Json> Parse(std::string_view line) {
  if (TooDeep(line)) {
    return absl::InvalidArgumentError("line: JSON is nested too deeply");
  }
  Json request = Json::parse(line.begin(), line.end(), /*cb=*/nullptr,
                             /*allow_exceptions=*/false);
  if (request.is_discarded()) {
    return absl::InvalidArgumentError("line: not valid JSON");
  }
  if (!request.is_object()) {
    return absl::InvalidArgumentError("line: not a JSON object");
  }
  return request;
}

// The protocol has one code for a checkpoint that cannot be used.
std::string CodeName(absl::StatusCode code) {
  if (code == absl::StatusCode::kDataLoss) {
    code = absl::StatusCode::kFailedPrecondition;
  }
  return absl::StatusCodeToString(code);
}

}  // namespace

absl::StatusOr<Json> Registry::Run(const Json& request) const {
  const auto name_node = request.find("op");
  if (name_node == request.end() || !name_node->is_string()) {
    return absl::InvalidArgumentError("op: missing or not a string");
  }
  const std::string name = name_node->get<std::string>();
  const Json empty = Json::object();
  const auto args_node = request.find("args");
  const Json& object =
      args_node == request.end() || args_node->is_null() ? empty : *args_node;
  if (!object.is_object()) {
    return absl::InvalidArgumentError("args: must be an object");
  }
  const Args args(object);
  if (name == "version") {
    COX_RETURN_IF_ERROR(args.CheckNames({}));
    return Json{{"protocol", 1}};
  }
  if (name == "ops") {
    COX_RETURN_IF_ERROR(args.CheckNames({}));
    Json names = Json::array();
    for (const auto& [known, op] : ops_) names.push_back(known);
    return Json{{"ops", std::move(names)}};
  }
  const auto it = ops_.find(name);
  if (it == ops_.end()) {
    return absl::UnimplementedError(
        absl::StrCat("op: '", name, "' is not in this binary"));
  }
  std::vector<std::string_view> allowed = it->second.args;
  allowed.push_back("dtype");
  COX_RETURN_IF_ERROR(args.CheckNames(allowed));
  COX_ASSIGN_OR_RETURN(const std::string dtype,
                       args.StringOr("dtype", "float64"));
  if (dtype == "float64") return it->second.float64(args);
  if (dtype == "float32") return it->second.float32(args);
  return absl::InvalidArgumentError("dtype: must be float64 or float32");
}

std::string Registry::Answer(std::string_view line) const {
  Json answer = Json::object();
  const absl::StatusOr<Json> request = Parse(line);
  if (request.ok()) {
    const auto id = request->find("id");
    if (id != request->end()) answer["id"] = *id;
  }
  absl::StatusOr<Json> result =
      request.ok() ? Run(*request) : absl::StatusOr<Json>(request.status());
  answer["ok"] = result.ok();
  if (result.ok()) {
    answer["result"] = std::move(*result);
  } else {
    answer["error"] = {{"code", CodeName(result.status().code())},
                       {"message", std::string(result.status().message())}};
  }
  return answer.dump(-1, ' ', /*ensure_ascii=*/false,
                     Json::error_handler_t::replace);
}

}  // namespace cox::ops
