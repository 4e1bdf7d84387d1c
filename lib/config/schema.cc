#include "lib/config/schema.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <vector>

#include "absl/strings/str_join.h"

namespace cox::config {
namespace {

using CppType = FieldDescriptor::CppType;

absl::Status Expected(ScalarText value, const FieldDescriptor& field,
                      std::string_view detail = "") {
  return absl::InvalidArgumentError(
      absl::StrCat("expected ", std::string(ExpectedName(field)), ", found ",
                   value.quoted ? "the text " : "", "'",
                   std::string(value.text), "'", std::string(detail)));
}

// Optional '+', then all of the text.
template <typename T>
std::errc ReadNumber(std::string_view text, T* value) {
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  const char* end = text.data() + text.size();
  const auto [ptr, error] = std::from_chars(text.data(), end, *value);
  if (error != std::errc()) return error;
  return ptr == end ? std::errc() : std::errc::invalid_argument;
}

template <typename T>
absl::Status ReadInteger(ScalarText value, const FieldDescriptor& field,
                         T* number) {
  if (value.quoted) return Expected(value, field);
  const std::errc error = ReadNumber(value.text, number);
  if (error == std::errc()) return absl::OkStatus();
  if (error == std::errc::result_out_of_range) {
    return Expected(value, field, ", which does not fit");
  }
  return Expected(value, field,
                  std::is_unsigned_v<T> && value.text.starts_with('-')
                      ? ", which is negative"
                      : "");
}

absl::Status ReadDouble(ScalarText value, const FieldDescriptor& field,
                        double* number) {
  if (value.quoted || ReadNumber(value.text, number) != std::errc()) {
    return Expected(value, field);
  }
  if (!std::isfinite(*number)) {
    return Expected(value, field, ", which is not finite");
  }
  return absl::OkStatus();
}

bool IsUtf8(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    const auto byte = static_cast<unsigned char>(s[i]);
    const size_t length = byte < 0x80             ? 1
                          : (byte & 0xe0) == 0xc0 ? 2
                          : (byte & 0xf0) == 0xe0 ? 3
                          : (byte & 0xf8) == 0xf0 ? 4
                                                  : 0;
    if (length == 0 || i + length > s.size()) return false;
    for (size_t k = 1; k < length; ++k) {
      if ((static_cast<unsigned char>(s[i + k]) & 0xc0) != 0x80) return false;
    }
    i += length;
  }
  return true;
}

std::string FormatDouble(double value) {
  char buffer[40];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, result.ptr);
}

std::string FormatElement(const Message& message, const FieldDescriptor& field,
                          int index) {
  const auto* reflection = message.GetReflection();
  const bool list = field.is_repeated();
  switch (field.cpp_type()) {
    case CppType::CPPTYPE_INT32:
      return absl::StrCat(
          list ? reflection->GetRepeatedInt32(message, &field, index)
               : reflection->GetInt32(message, &field));
    case CppType::CPPTYPE_INT64:
      return absl::StrCat(
          list ? reflection->GetRepeatedInt64(message, &field, index)
               : reflection->GetInt64(message, &field));
    case CppType::CPPTYPE_UINT64:
      return absl::StrCat(
          list ? reflection->GetRepeatedUInt64(message, &field, index)
               : reflection->GetUInt64(message, &field));
    case CppType::CPPTYPE_DOUBLE:
      return FormatDouble(
          list ? reflection->GetRepeatedDouble(message, &field, index)
               : reflection->GetDouble(message, &field));
    case CppType::CPPTYPE_BOOL:
      return (list ? reflection->GetRepeatedBool(message, &field, index)
                   : reflection->GetBool(message, &field))
                 ? "true"
                 : "false";
    default:
      return QuoteText(TextAt(message, field, index));
  }
}

// The path of the first field called `name` below `descriptor`, or "".
std::string FindByName(std::string_view name, const Descriptor& descriptor,
                       const std::string& prefix) {
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    const std::string path = JoinField(prefix, field.name());
    if (field.name() == name) return path;
    if (IsSection(field)) {
      std::string below = FindByName(name, *field.message_type(), path);
      if (!below.empty()) return below;
    }
  }
  return "";
}

void VisitLeaves(const Message& message, const std::string& prefix,
                 bool resumable,
                 const std::function<void(const Leaf&)>& visit) {
  const Descriptor& descriptor = *message.GetDescriptor();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    const std::string path = JoinField(prefix, field.name());
    const bool may_differ = resumable || SettingOf(field).resumable();
    if (IsSection(field)) {
      VisitLeaves(message.GetReflection()->GetMessage(message, &field), path,
                  may_differ, visit);
    } else {
      visit({path, &message, &field, may_differ});
    }
  }
}

}  // namespace

const cox::v1::Setting& SettingOf(const FieldDescriptor& field) {
  return field.options().GetExtension(cox::v1::setting);
}

bool IsSection(const FieldDescriptor& field) {
  return field.cpp_type() == CppType::CPPTYPE_MESSAGE;
}

bool IsNumber(const FieldDescriptor& field) {
  return field.cpp_type() == CppType::CPPTYPE_INT32 ||
         field.cpp_type() == CppType::CPPTYPE_INT64 ||
         field.cpp_type() == CppType::CPPTYPE_UINT64 ||
         field.cpp_type() == CppType::CPPTYPE_DOUBLE;
}

std::string_view ExpectedName(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case CppType::CPPTYPE_DOUBLE:
      return "a number";
    case CppType::CPPTYPE_BOOL:
      return "true or false";
    case CppType::CPPTYPE_STRING:
      return "a text";
    case CppType::CPPTYPE_MESSAGE:
      return "a section";
    default:
      return "an integer";
  }
}

std::string TypeName(const FieldDescriptor& field) {
  if (IsSection(field)) return "section";
  const std::string_view element =
      field.cpp_type() == CppType::CPPTYPE_BOOL     ? "true or false"
      : field.cpp_type() == CppType::CPPTYPE_STRING ? "text"
      : field.cpp_type() == CppType::CPPTYPE_DOUBLE ? "number"
                                                    : "integer";
  return field.is_repeated()
             ? absl::StrCat("list of ", std::string(element), "s")
             : std::string(element);
}

absl::Status StoreScalar(ScalarText value, const FieldDescriptor& field,
                         Message* message) {
  const auto* reflection = message->GetReflection();
  const bool list = field.is_repeated();
  switch (field.cpp_type()) {
    case CppType::CPPTYPE_INT32: {
      int32_t number = 0;
      COX_RETURN_IF_ERROR(ReadInteger(value, field, &number));
      list ? reflection->AddInt32(message, &field, number)
           : reflection->SetInt32(message, &field, number);
      return absl::OkStatus();
    }
    case CppType::CPPTYPE_INT64: {
      int64_t number = 0;
      COX_RETURN_IF_ERROR(ReadInteger(value, field, &number));
      list ? reflection->AddInt64(message, &field, number)
           : reflection->SetInt64(message, &field, number);
      return absl::OkStatus();
    }
    case CppType::CPPTYPE_UINT64: {
      uint64_t number = 0;
      COX_RETURN_IF_ERROR(ReadInteger(value, field, &number));
      list ? reflection->AddUInt64(message, &field, number)
           : reflection->SetUInt64(message, &field, number);
      return absl::OkStatus();
    }
    case CppType::CPPTYPE_DOUBLE: {
      double number = 0;
      COX_RETURN_IF_ERROR(ReadDouble(value, field, &number));
      list ? reflection->AddDouble(message, &field, number)
           : reflection->SetDouble(message, &field, number);
      return absl::OkStatus();
    }
    case CppType::CPPTYPE_BOOL: {
      if (value.quoted || (value.text != "true" && value.text != "false")) {
        return Expected(value, field);
      }
      const bool flag = value.text == "true";
      list ? reflection->AddBool(message, &field, flag)
           : reflection->SetBool(message, &field, flag);
      return absl::OkStatus();
    }
    default: {
      // proto3 strings are UTF-8, and no path or name may hold a NUL.
      if (!IsUtf8(value.text) || value.text.find('\0') != value.text.npos) {
        return absl::InvalidArgumentError(
            "expected a text, found bytes that are not UTF-8 or a NUL");
      }
      list ? reflection->AddString(message, &field, std::string(value.text))
           : reflection->SetString(message, &field, std::string(value.text));
      return absl::OkStatus();
    }
  }
}

void ApplyDefaults(Message* message) {
  const Descriptor& descriptor = *message->GetDescriptor();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    if (IsSection(field)) {
      ApplyDefaults(message->GetReflection()->MutableMessage(message, &field));
    } else if (field.is_repeated()) {
      message->GetReflection()->ClearField(message, &field);
    } else {
      message->GetReflection()->ClearField(message, &field);
      const std::string& def = SettingOf(field).def();
      // The schema is ours: a default that does not parse is a broken build.
      if (!def.empty()) {
        COX_CHECK(StoreScalar({def}, field, message).ok());
      }
    }
  }
}

std::string QuoteText(std::string_view text) {
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '/' ||
           c == '-';
  };
  const bool letter_first =
      !text.empty() && ((text[0] >= 'a' && text[0] <= 'z') || text[0] == '/');
  static constexpr std::string_view kWords[] = {
      "true", "false", "null", "yes", "no", "on", "off", "y", "n"};
  if (letter_first && std::all_of(text.begin(), text.end(), is_plain) &&
      std::find(std::begin(kWords), std::end(kWords), text) ==
          std::end(kWords)) {
    return std::string(text);
  }
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppend(&out, "\\x", absl::Hex(byte, absl::kZeroPad2));
    } else {
      out += c;
    }
  }
  out += '"';
  return out;
}

std::string FormatValue(const Message& message, const FieldDescriptor& field) {
  if (!field.is_repeated()) return FormatElement(message, field, 0);
  std::vector<std::string> elements;
  for (int i = 0; i < CountOf(message, field); ++i) {
    elements.push_back(FormatElement(message, field, i));
  }
  return absl::StrCat("[", absl::StrJoin(elements, ", "), "]");
}

double NumberAt(const Message& message, const FieldDescriptor& field,
                int index) {
  const auto* reflection = message.GetReflection();
  const bool list = field.is_repeated();
  switch (field.cpp_type()) {
    case CppType::CPPTYPE_INT32:
      return list ? reflection->GetRepeatedInt32(message, &field, index)
                  : reflection->GetInt32(message, &field);
    case CppType::CPPTYPE_INT64:
      return static_cast<double>(
          list ? reflection->GetRepeatedInt64(message, &field, index)
               : reflection->GetInt64(message, &field));
    case CppType::CPPTYPE_UINT64:
      return static_cast<double>(
          list ? reflection->GetRepeatedUInt64(message, &field, index)
               : reflection->GetUInt64(message, &field));
    default:
      return list ? reflection->GetRepeatedDouble(message, &field, index)
                  : reflection->GetDouble(message, &field);
  }
}

std::string TextAt(const Message& message, const FieldDescriptor& field,
                   int index) {
  return field.is_repeated()
             ? message.GetReflection()->GetRepeatedString(message, &field,
                                                          index)
             : message.GetReflection()->GetString(message, &field);
}

int CountOf(const Message& message, const FieldDescriptor& field) {
  return field.is_repeated()
             ? message.GetReflection()->FieldSize(message, &field)
             : 1;
}

void ForEachLeaf(const Message& message,
                 const std::function<void(const Leaf&)>& visit) {
  VisitLeaves(message, "", /*resumable=*/false, visit);
}

std::string JoinField(std::string_view prefix, std::string_view name) {
  if (prefix.empty()) return std::string(name);
  return absl::StrCat(std::string(prefix), ".", std::string(name));
}

int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

std::string DidYouMean(std::string_view name, const Descriptor& siblings) {
  // A hostile key must not cost quadratic time.
  if (name.size() > 100) return "";
  std::string best;
  int best_distance = std::max(1, static_cast<int>(name.size()) / 3) + 1;
  for (int i = 0; i < siblings.field_count(); ++i) {
    const int distance = EditDistance(name, siblings.field(i)->name());
    if (distance < best_distance) {
      best_distance = distance;
      best = siblings.field(i)->name();
    }
  }
  if (best.empty()) {
    best = FindByName(name, *cox::v1::RunConfig::descriptor(), "");
  }
  return best.empty() ? "" : absl::StrCat(" (did you mean '", best, "'?)");
}

}  // namespace cox::config
