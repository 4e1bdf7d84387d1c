#include "lib/data/dataset.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <utility>

#include "lib/base/hash.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

absl::Status Expected(std::string_view expected, std::string_view found) {
  return absl::InvalidArgumentError(absl::StrCat(
      "expected ", std::string(expected), ", found ", std::string(found)));
}

// Length of the UTF-8 sequence at text[at], or 0 when it is not one (RFC 3629:
// no overlong forms, no surrogates, at most U+10FFFF).
size_t SequenceLength(std::string_view text, size_t at) {
  const auto byte = [text](size_t i) {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0};
  };
  const uint8_t lead = byte(at);
  if (lead < 0x80) {
    return 1;
  }
  size_t length = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    low = lead == 0xE0 ? 0xA0 : low;
    high = lead == 0xED ? 0x9F : high;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    low = lead == 0xF0 ? 0x90 : low;
    high = lead == 0xF4 ? 0x8F : high;
  } else {
    return 0;
  }
  if (byte(at + 1) < low || byte(at + 1) > high) {
    return 0;
  }
  for (size_t i = 2; i < length; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) {
      return 0;
    }
  }
  return length;
}

absl::Status CheckUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = SequenceLength(text, at);
    if (length == 0) {
      return Expected("UTF-8",
                      absl::StrCat("an invalid sequence at column ", at + 1));
    }
    at += length;
  }
  return absl::OkStatus();
}

// Learns where a text stops being JSON; the non-throwing parser does not say.
class SyntaxErrorFinder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return true; }
  bool key(string_t&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    column_ = position;
    return false;
  }
  size_t column() const { return column_; }

 private:
  size_t column_ = 0;
};

std::string Describe(const Json& value) {
  if (value.is_string() && value.get_ref<const std::string&>().empty()) {
    return "an empty string";
  }
  return absl::StrCat("a value of type ", value.type_name());
}

absl::StatusOr<std::string> GetString(const Json& object, const char* key,
                                      bool allow_empty) {
  const auto it = object.find(key);
  const std::string expected = absl::StrCat(
      allow_empty ? "a string '" : "a non-empty string '", key, "'");
  if (it == object.end()) {
    return Expected(expected, "no such key");
  }
  if (!it->is_string() ||
      (!allow_empty && it->get_ref<const std::string&>().empty())) {
    return Expected(expected, Describe(*it));
  }
  return it->get<std::string>();
}

absl::StatusOr<std::vector<int32_t>> GetInts(const Json& object,
                                             const char* key, int32_t least) {
  const auto it = object.find(key);
  const std::string expected = absl::StrCat(
      "a non-empty list of integers of at least ", least, " '", key, "'");
  if (it == object.end()) {
    return Expected(expected, "no such key");
  }
  if (!it->is_array() || it->empty()) {
    return Expected(expected, it->is_array() ? "an empty list" : Describe(*it));
  }
  std::vector<int32_t> values;
  for (const Json& element : *it) {
    if (!element.is_number_integer() || element < least ||
        element > INT32_MAX) {
      return Expected(expected, absl::StrCat("element ", element.dump()));
    }
    values.push_back(element.get<int32_t>());
  }
  return values;
}

// "prompt" in `allowed` stands for "instruction" and "context" too.
absl::Status CheckKeys(const Json& object,
                       std::initializer_list<std::string_view> allowed) {
  constexpr std::array<std::string_view, 3> kIgnored = {"id", "source", "meta"};
  for (const auto& item : object.items()) {
    const std::string& key = item.key();
    const auto is_key = [&key](std::string_view name) { return name == key; };
    const bool prompt = key == "instruction" || key == "context";
    if (!std::ranges::any_of(allowed, is_key) &&
        !std::ranges::any_of(kIgnored, is_key) &&
        !(prompt && std::ranges::find(allowed, "prompt") != allowed.end())) {
      std::string names;
      for (const std::string_view name : allowed) {
        absl::StrAppend(&names, names.empty() ? "'" : ", '", std::string(name),
                        "'");
      }
      return Expected(absl::StrCat("only the keys ", names),
                      absl::StrCat("'", key.substr(0, 64), "'"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMessages(const Json& object, Row& row) {
  const Json& list = object["messages"];
  if (!list.is_array() || list.empty()) {
    return Expected("a non-empty list 'messages'", Describe(list));
  }
  for (const Json& element : list) {
    if (!element.is_object()) {
      return Expected("an object in 'messages'", Describe(element));
    }
    COX_RETURN_IF_ERROR(CheckKeys(element, {"role", "content"}));
    COX_ASSIGN_OR_RETURN(std::string role, GetString(element, "role", false));
    COX_ASSIGN_OR_RETURN(std::string content,
                         GetString(element, "content", true));
    row.messages.push_back({std::move(role), std::move(content)});
  }
  return absl::OkStatus();
}

// "prompt", or "instruction" with an optional "context".
absl::Status ReadPrompt(const Json& object, Row& row) {
  if (!object.contains("instruction")) {
    if (object.contains("context")) {
      return Expected("'context' beside an 'instruction'", "none");
    }
    COX_ASSIGN_OR_RETURN(row.prompt, GetString(object, "prompt", false));
    return absl::OkStatus();
  }
  if (object.contains("prompt")) {
    return Expected("'prompt' or 'instruction'", "both");
  }
  COX_ASSIGN_OR_RETURN(row.instruction,
                       GetString(object, "instruction", false));
  if (object.contains("context")) {
    COX_ASSIGN_OR_RETURN(row.prompt, GetString(object, "context", true));
  }
  return absl::OkStatus();
}

absl::Status ReadRanking(const Json& object, Row& row) {
  COX_RETURN_IF_ERROR(ReadPrompt(object, row));
  const Json responses = object.value("responses", Json());
  if (!responses.is_array() || responses.size() < 2) {
    return Expected("a list of at least 2 'responses'",
                    responses.is_array()
                        ? absl::StrCat(responses.size(), " of them")
                        : Describe(responses));
  }
  for (const Json& element : responses) {
    if (!element.is_string() || element.get_ref<const std::string&>().empty()) {
      return Expected("non-empty strings in 'responses'", Describe(element));
    }
    row.responses.push_back(element.get<std::string>());
  }
  COX_ASSIGN_OR_RETURN(row.ranking, GetInts(object, "ranking", 1));
  if (row.ranking.size() != row.responses.size()) {
    return Expected(
        absl::StrCat("a 'ranking' of ", row.responses.size(), " places"),
        absl::StrCat(row.ranking.size()));
  }
  const auto [best, worst] = std::ranges::minmax(row.ranking);
  if (best != 1 || worst > static_cast<int64_t>(row.ranking.size())) {
    return Expected(absl::StrCat("places from 1 (best) to at most ",
                                 row.ranking.size(), " in 'ranking'"),
                    absl::StrCat(best, " to ", worst));
  }
  return absl::OkStatus();
}

absl::Status ReadPair(const Json& object, Row& row) {
  if (object.contains("instruction") || object.contains("context")) {
    COX_RETURN_IF_ERROR(ReadPrompt(object, row));
  } else if (object.contains("prompt")) {
    COX_ASSIGN_OR_RETURN(row.prompt, GetString(object, "prompt", true));
  }
  COX_ASSIGN_OR_RETURN(row.chosen, GetString(object, "chosen", false));
  COX_ASSIGN_OR_RETURN(row.rejected, GetString(object, "rejected", false));
  return absl::OkStatus();
}

// The kind follows from the keys that only it has.
absl::Status ReadRow(const Json& object, Row& row) {
  if (object.contains("text")) {
    row.kind = RowKind::kText;
    COX_RETURN_IF_ERROR(CheckKeys(object, {"text"}));
    COX_ASSIGN_OR_RETURN(row.text, GetString(object, "text", false));
  } else if (object.contains("prompt_ids")) {
    row.kind = RowKind::kPromptIds;
    COX_RETURN_IF_ERROR(CheckKeys(object, {"prompt_ids"}));
    COX_ASSIGN_OR_RETURN(row.prompt_ids, GetInts(object, "prompt_ids", 0));
  } else if (object.contains("messages")) {
    row.kind = RowKind::kMessages;
    COX_RETURN_IF_ERROR(CheckKeys(object, {"messages"}));
    COX_RETURN_IF_ERROR(ReadMessages(object, row));
  } else if (object.contains("chosen") || object.contains("rejected")) {
    row.kind = RowKind::kPair;
    COX_RETURN_IF_ERROR(CheckKeys(object, {"prompt", "chosen", "rejected"}));
    COX_RETURN_IF_ERROR(ReadPair(object, row));
  } else if (object.contains("responses") || object.contains("ranking")) {
    row.kind = RowKind::kRanking;
    COX_RETURN_IF_ERROR(CheckKeys(object, {"prompt", "responses", "ranking"}));
    COX_RETURN_IF_ERROR(ReadRanking(object, row));
  } else if (object.contains("completion")) {
    row.kind = RowKind::kCompletion;
    COX_RETURN_IF_ERROR(CheckKeys(object, {"prompt", "completion"}));
    COX_RETURN_IF_ERROR(ReadPrompt(object, row));
    COX_ASSIGN_OR_RETURN(row.completion, GetString(object, "completion", true));
  } else if (object.contains("prompt") || object.contains("instruction")) {
    row.kind = RowKind::kPrompt;
    COX_RETURN_IF_ERROR(CheckKeys(object, {"prompt"}));
    COX_RETURN_IF_ERROR(ReadPrompt(object, row));
  } else {
    return Expected(
        "'text', 'prompt', 'instruction', 'prompt_ids', 'messages', 'chosen' "
        "or 'responses'",
        "none of these keys");
  }
  return absl::OkStatus();
}

bool HasPrompt(RowKind kind) {
  return kind == RowKind::kCompletion || kind == RowKind::kPair ||
         kind == RowKind::kRanking;
}

// Makes `row` one of `expected`, or says why it is not.
absl::Status Fit(RowKind expected, Row& row) {
  if (row.kind == expected) {
    return absl::OkStatus();
  }
  if (expected == RowKind::kPrompt && HasPrompt(row.kind)) {
    if (row.prompt.empty() && row.instruction.empty()) {
      return Expected("a row with a prompt", "an empty or no prompt");
    }
    row.kind = RowKind::kPrompt;
    row.completion.clear();
    row.chosen.clear();
    row.rejected.clear();
    row.responses.clear();
    row.ranking.clear();
    return absl::OkStatus();
  }
  return Expected(
      absl::StrCat("a row of kind ", std::string(RowKindName(expected))),
      std::string(RowKindName(row.kind)));
}

// Calls visit(line number, line without its end) for every line.
template <typename Visit>
absl::Status ForEachLine(std::string_view content, Visit visit) {
  if (content.starts_with(kByteOrderMark)) {
    content.remove_prefix(kByteOrderMark.size());
  }
  for (int64_t number = 1; !content.empty(); ++number) {
    const size_t end = content.find('\n');
    std::string_view line = content.substr(0, end);
    content.remove_prefix(end == std::string_view::npos ? content.size()
                                                        : end + 1);
    if (line.ends_with('\r')) {
      line.remove_suffix(1);
    }
    COX_RETURN_IF_ERROR(visit(number, line));
  }
  return absl::OkStatus();
}

bool IsBlank(std::string_view line) {
  return line.find_first_not_of(" \t") == std::string_view::npos;
}

// Appends one file's rows to a dataset.
class FileReader {
 public:
  FileReader(Dataset& dataset, std::optional<RowKind> expected)
      : dataset_(dataset), expected_(expected) {}

  absl::Status Read(const std::string& path, std::string_view content) {
    file_ = static_cast<int32_t>(dataset_.paths.size());
    dataset_.paths.push_back(path);
    if (!path.ends_with(".txt")) {
      return ForEachLine(content, [this](int64_t number,
                                         std::string_view line) {
        return IsBlank(line) ? absl::OkStatus() : Add(number, ParseRow(line));
      });
    }
    Row row;
    COX_RETURN_IF_ERROR(ForEachLine(
        content, [this, &row](int64_t number, std::string_view line) {
          return Paragraph(number, line, row);
        }));
    return Flush(row);
  }

 private:
  absl::Status Paragraph(int64_t number, std::string_view line, Row& row) {
    if (IsBlank(line)) {
      return Flush(row);
    }
    if (row.text.empty()) {
      row.line = number;
    } else {
      row.text.push_back('\n');
    }
    row.text.append(line);
    return absl::OkStatus();
  }

  absl::Status Flush(Row& row) {
    if (row.text.empty()) {
      return absl::OkStatus();
    }
    absl::StatusOr<Row> checked = row;
    if (row.text.size() > kMaxRowBytes) {
      checked = Expected(absl::StrCat("at most ", kMaxRowBytes, " bytes"),
                         absl::StrCat(row.text.size()));
    } else if (const absl::Status utf8 = CheckUtf8(row.text); !utf8.ok()) {
      checked = utf8;
    }
    const int64_t line = row.line;
    row = Row();
    return Add(line, std::move(checked));
  }

  absl::Status Add(int64_t line, absl::StatusOr<Row> row) {
    absl::Status status = row.status();
    if (status.ok()) {
      if (!expected_.has_value()) {
        expected_ = row->kind;
      }
      status = Fit(*expected_, *row);
    }
    if (!status.ok()) {
      return Annotate(status, absl::StrCat(dataset_.paths.back(), ":", line));
    }
    row->file = file_;
    row->line = line;
    dataset_.rows.push_back(*std::move(row));
    return absl::OkStatus();
  }

  Dataset& dataset_;
  std::optional<RowKind> expected_;
  int32_t file_ = 0;
};

absl::StatusOr<std::vector<std::string>> ExpandPath(Fs& fs,
                                                    const std::string& path) {
  const auto is_data = [](const std::string& name) {
    return name.ends_with(".jsonl") || name.ends_with(".txt");
  };
  if (is_data(path)) {
    return std::vector<std::string>{path};
  }
  if (!fs.Exists(path)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  const absl::StatusOr<std::vector<std::string>> names = fs.List(path);
  if (!names.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": expected a .jsonl or .txt file, or a folder of them"));
  }
  std::vector<std::string> files;
  for (const std::string& name : *names) {
    if (is_data(name)) {
      files.push_back(JoinPath(path, name));
    }
  }
  return files;
}

}  // namespace

std::string_view RowKindName(RowKind kind) {
  switch (kind) {
    case RowKind::kText:
      return "text";
    case RowKind::kPrompt:
      return "prompt";
    case RowKind::kPromptIds:
      return "prompt_ids";
    case RowKind::kCompletion:
      return "completion";
    case RowKind::kMessages:
      return "messages";
    case RowKind::kPair:
      return "pair";
    case RowKind::kRanking:
      return "ranking";
  }
  return "unknown";
}

std::string PromptText(const Row& row) {
  return row.instruction.empty()
             ? row.prompt
             : absl::StrCat(row.instruction, "\n", row.prompt);
}

std::string Dataset::Where(const Row& row) const {
  const auto file = static_cast<size_t>(row.file);
  return absl::StrCat(file < paths.size() ? paths[file] : "?", ":", row.line);
}

absl::StatusOr<Row> ParseRow(std::string_view line) {
  if (line.size() > kMaxRowBytes) {
    return Expected(absl::StrCat("at most ", kMaxRowBytes, " bytes"),
                    absl::StrCat(line.size()));
  }
  COX_RETURN_IF_ERROR(CheckUtf8(line));
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) {
    SyntaxErrorFinder finder;
    Json::sax_parse(line, &finder);
    return Expected("a JSON object",
                    absl::StrCat("a syntax error at column ", finder.column()));
  }
  if (!object.is_object()) {
    return Expected("a JSON object", Describe(object));
  }
  Row row;
  COX_RETURN_IF_ERROR(ReadRow(object, row));
  return row;
}

absl::StatusOr<Dataset> LoadDataset(Fs& fs,
                                    const std::vector<std::string>& paths,
                                    std::optional<RowKind> expected) {
  Dataset dataset;
  dataset.kind = expected.value_or(RowKind::kText);
  FileReader reader(dataset, expected);
  Sha256 hash;
  for (const std::string& given : paths) {
    COX_ASSIGN_OR_RETURN(const std::vector<std::string> files,
                         ExpandPath(fs, given));
    for (const std::string& path : files) {
      COX_ASSIGN_OR_RETURN(const std::string content, fs.ReadAll(path));
      hash.Update(absl::StrCat(content.size(), "\n"));
      hash.Update(std::string_view(content));
      COX_RETURN_IF_ERROR(reader.Read(path, content));
    }
  }
  if (dataset.rows.empty()) {
    std::string names;
    for (const std::string& path : paths) {
      absl::StrAppend(&names, names.empty() ? "" : ", ", path);
    }
    return absl::InvalidArgumentError(
        absl::StrCat(names.empty() ? "no path" : names,
                     ": expected at least one row, found an empty dataset"));
  }
  dataset.kind = dataset.rows.front().kind;
  dataset.hash = hash.HexDigest();
  return dataset;
}

}  // namespace cox
