#ifndef COX_LIB_WEIGHTS_GGUF_MODEL_H_
#define COX_LIB_WEIGHTS_GGUF_MODEL_H_

// A GGUF file as the Hugging Face folder that it was made from: configuration,
// names, the order of rotary rows, tokenizer and chat template. Architectures
// llama, qwen2 and qwen3 (dense); tokenizers of GPT-2's byte-level kind.

#include <string>
#include <string_view>

#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "lib/weights/gguf.h"
#include "lib/weights/model_folder.h"

namespace cox {

// By the name's end; the content is checked when it is read.
bool IsGgufPath(std::string_view path);

// config.json. INVALID_ARGUMENT names the key that is missing or out of range;
// FAILED_PRECONDITION an architecture or RoPE scaling that is not supported.
absl::StatusOr<std::string> GgufConfigJson(const GgufHeader& header);

// tokenizer.json for Hugging Face's library. FAILED_PRECONDITION: another kind
// of tokenizer (SentencePiece), or an unknown pre-tokenizer.
absl::StatusOr<std::string> GgufTokenizerJson(const GgufHeader& header);

// tokenizer_config.json: the named tokens and the chat template.
absl::StatusOr<std::string> GgufTokenizerConfigJson(const GgufHeader& header);

// generation_config.json: every id that ends an answer, and padding.
absl::StatusOr<std::string> GgufGenerationConfigJson(const GgufHeader& header);

// All of the above, without tensors.
absl::StatusOr<ModelFolder> ReadGgufTexts(Fs& fs, const std::string& path);

// With tensors: blocks are expanded to float32, F32, F16 and BF16 stay. Memory:
// four bytes per weight. Errors as above, with the path, and those of
// ReadGgufHeader; FAILED_PRECONDITION names a tensor without a place.
absl::StatusOr<ModelFolder> ReadGgufModel(Fs& fs, const std::string& path);

}  // namespace cox

#endif  // COX_LIB_WEIGHTS_GGUF_MODEL_H_
