#ifndef COX_CLI_IMPORT_COMMAND_H_
#define COX_CLI_IMPORT_COMMAND_H_

#include <string>

namespace cox {

// `cox ckpt import SOURCE OUT`: a GGUF file, or a model folder of any storage,
// as a Hugging Face folder of float32 or bfloat16. Returns the exit code.
int ImportModel(const std::string& source, const std::string& out,
                const std::string& dtype);

}  // namespace cox

#endif  // COX_CLI_IMPORT_COMMAND_H_
