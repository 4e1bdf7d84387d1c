#ifndef COX_LIB_DATA_TOKENIZER_FFI_H_
#define COX_LIB_DATA_TOKENIZER_FFI_H_

// C ABI of the Rust crate in lib/data/tokenizer_rs. Only tokenizer.cc includes
// this; everyone else uses lib/data/tokenizer.h.
//
// Every function that can fail returns a CoxTokStatus and, when it is not
// COX_TOK_OK, fills *error with an UTF-8 message. Whatever comes out in
// CoxTokBytes or CoxTokIds belongs to the caller, who gives it back with the
// matching free function; both are {NULL, 0} when there is nothing. Rust panics
// are caught and reported as COX_TOK_PANIC. All functions may be called from
// any thread; a CoxTokenizer is immutable.

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CoxTokenizer CoxTokenizer;

typedef enum {
  COX_TOK_OK = 0,
  COX_TOK_INVALID = 1,  // the caller's data is wrong
  COX_TOK_PANIC = 2,    // a bug in the crate
} CoxTokStatus;

typedef struct {
  const uint8_t* data;
  size_t size;
} CoxTokSlice;

typedef struct {
  uint8_t* data;
  size_t size;
} CoxTokBytes;

typedef struct {
  int32_t* data;
  size_t size;
} CoxTokIds;

void cox_tok_free_bytes(CoxTokBytes bytes);
void cox_tok_free_ids(CoxTokIds ids);

// Trains a byte-level BPE; *json becomes the bytes of a tokenizer.json.
// Ids: special tokens, 256 bytes, merged tokens in order of merging.
CoxTokStatus cox_tok_train(const CoxTokSlice* texts, size_t num_texts,
                           const CoxTokSlice* specials, size_t num_specials,
                           size_t vocab_size, uint64_t min_frequency,
                           CoxTokBytes* json, CoxTokBytes* error);

CoxTokStatus cox_tok_load(CoxTokSlice json, CoxTokenizer** tokenizer,
                          CoxTokBytes* error);
void cox_tok_free(CoxTokenizer* tokenizer);

CoxTokStatus cox_tok_encode(const CoxTokenizer* tokenizer, CoxTokSlice text,
                            int32_t add_special_tokens, CoxTokIds* ids,
                            CoxTokBytes* error);
CoxTokStatus cox_tok_decode(const CoxTokenizer* tokenizer, const int32_t* ids,
                            size_t num_ids, int32_t skip_special_tokens,
                            CoxTokBytes* text, CoxTokBytes* error);
// -1 when there is no such token.
int32_t cox_tok_token_to_id(const CoxTokenizer* tokenizer, CoxTokSlice token);
CoxTokStatus cox_tok_id_to_token(const CoxTokenizer* tokenizer, int32_t id,
                                 CoxTokBytes* token, CoxTokBytes* error);
// One more than the largest id.
int32_t cox_tok_vocab_size(const CoxTokenizer* tokenizer);

// `request` is JSON: {"template": s, "bos_token": s, "eos_token": s,
// "add_generation_prompt": b, "messages": [{"role": s, "content": s}, ...]}.
// A template that asks for the date gets a fixed one, so that the same
// conversation always renders the same.
CoxTokStatus cox_tok_render_chat(CoxTokSlice request, CoxTokBytes* text,
                                 CoxTokBytes* error);

#ifdef __cplusplus
}
#endif

#endif  // COX_LIB_DATA_TOKENIZER_FFI_H_
