#ifndef COX_LIB_WEIGHTS_JSON_TEXT_H_
#define COX_LIB_WEIGHTS_JSON_TEXT_H_

#include <string>
#include <string_view>

namespace cox {

// Appends `value` as a JSON string with one spelling per value: only '"', '\'
// and control characters are escaped, other bytes stay. Used for texts that are
// hashed, so independent of a JSON library's choices.
void AppendJsonString(std::string_view value, std::string& out);

}  // namespace cox

#endif  // COX_LIB_WEIGHTS_JSON_TEXT_H_
