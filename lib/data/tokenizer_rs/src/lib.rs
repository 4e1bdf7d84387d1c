//! C ABI over Hugging Face tokenizers: see ../../tokenizer_ffi.h, which states
//! the contract. This file holds the ABI only: pointers in, pointers out,
//! panics caught. The work is done by `train`, `chat` and the tokenizers crate.
#![deny(unsafe_op_in_unsafe_fn)]

mod chat;
mod train;

use std::cell::RefCell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::str;
use std::sync::Once;

use tokenizers::Tokenizer;

/// What a fallible body returns: Err is a message for the caller.
pub(crate) type Outcome<T> = Result<T, String>;

pub const COX_TOK_OK: i32 = 0;
pub const COX_TOK_INVALID: i32 = 1;
pub const COX_TOK_PANIC: i32 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct CoxTokSlice {
    data: *const u8,
    size: usize,
}

#[repr(C)]
pub struct CoxTokBytes {
    data: *mut u8,
    size: usize,
}

#[repr(C)]
pub struct CoxTokIds {
    data: *mut i32,
    size: usize,
}

/// A loaded tokenizer and which ids it has: decoding an id without a token
/// would silently lose it.
pub struct CoxTokenizer {
    inner: Tokenizer,
    known: Vec<bool>,
}

impl CoxTokSlice {
    /// # Safety
    /// `data` must point to `size` readable bytes, or `size` must be 0.
    unsafe fn bytes(&self) -> &[u8] {
        if self.size == 0 {
            return &[];
        }
        unsafe { std::slice::from_raw_parts(self.data, self.size) }
    }

    /// # Safety
    /// As `bytes`.
    unsafe fn text(&self, what: &str) -> Outcome<&str> {
        str::from_utf8(unsafe { self.bytes() })
            .map_err(|e| format!("{what} is not UTF-8: {e}"))
    }
}

fn give_bytes(bytes: Vec<u8>) -> CoxTokBytes {
    if bytes.is_empty() {
        return CoxTokBytes { data: std::ptr::null_mut(), size: 0 };
    }
    let boxed = bytes.into_boxed_slice();
    let size = boxed.len();
    CoxTokBytes { data: Box::into_raw(boxed) as *mut u8, size }
}

fn give_ids(ids: Vec<i32>) -> CoxTokIds {
    if ids.is_empty() {
        return CoxTokIds { data: std::ptr::null_mut(), size: 0 };
    }
    let boxed = ids.into_boxed_slice();
    let size = boxed.len();
    CoxTokIds { data: Box::into_raw(boxed) as *mut i32, size }
}

thread_local! {
    /// Where and why this thread panicked last.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Calls `body`; a panic becomes Err with its text instead of a report on
/// standard error.
fn catch<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            LAST_PANIC.with(|last| *last.borrow_mut() = info.to_string());
        }));
    });
    catch_unwind(AssertUnwindSafe(body))
        .map_err(|_| LAST_PANIC.with(|last| last.take()))
}

/// Runs `body`, stores its value or its error.
///
/// # Safety
/// `out` and `error` must be writable.
unsafe fn guard<T>(
    out: *mut T,
    error: *mut CoxTokBytes,
    body: impl FnOnce() -> Outcome<T>,
) -> i32 {
    let (code, message) = match catch(body) {
        Ok(Ok(value)) => {
            unsafe { out.write(value) };
            return COX_TOK_OK;
        }
        Ok(Err(message)) => (COX_TOK_INVALID, message),
        Err(message) => (COX_TOK_PANIC, message),
    };
    unsafe { error.write(give_bytes(message.into_bytes())) };
    code
}

/// # Safety
/// `bytes` must come from this library and not have been freed.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_free_bytes(bytes: CoxTokBytes) {
    if !bytes.data.is_null() {
        let slice = std::ptr::slice_from_raw_parts_mut(bytes.data, bytes.size);
        drop(unsafe { Box::from_raw(slice) });
    }
}

/// # Safety
/// `ids` must come from this library and not have been freed.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_free_ids(ids: CoxTokIds) {
    if !ids.data.is_null() {
        let slice = std::ptr::slice_from_raw_parts_mut(ids.data, ids.size);
        drop(unsafe { Box::from_raw(slice) });
    }
}

/// # Safety
/// `items` must point to `count` valid slices, or `count` must be 0.
unsafe fn texts_of<'a>(
    items: *const CoxTokSlice,
    count: usize,
    what: &str,
) -> Outcome<Vec<&'a str>> {
    let slices: &'a [CoxTokSlice] = if count == 0 {
        &[]
    } else {
        unsafe { std::slice::from_raw_parts(items, count) }
    };
    slices
        .iter()
        .enumerate()
        .map(|(i, s)| unsafe { s.text(&format!("{what} {i}")) })
        .collect()
}

/// # Safety
/// Pointers as tokenizer_ffi.h says.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_train(
    texts: *const CoxTokSlice,
    num_texts: usize,
    specials: *const CoxTokSlice,
    num_specials: usize,
    vocab_size: usize,
    min_frequency: u64,
    json: *mut CoxTokBytes,
    error: *mut CoxTokBytes,
) -> i32 {
    unsafe {
        guard(json, error, || {
            let texts = texts_of(texts, num_texts, "text")?;
            let specials = texts_of(specials, num_specials, "special token")?;
            train::train_byte_level_bpe(
                &texts,
                &specials,
                vocab_size,
                min_frequency,
            )
            .map(|s| give_bytes(s.into_bytes()))
        })
    }
}

/// # Safety
/// Pointers as tokenizer_ffi.h says.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_load(
    json: CoxTokSlice,
    tokenizer: *mut *mut CoxTokenizer,
    error: *mut CoxTokBytes,
) -> i32 {
    unsafe {
        guard(tokenizer, error, || {
            let bytes = json.bytes();
            let not_one = |e: String| format!("not a tokenizer.json: {e}");
            serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
                .map_err(|e| not_one(e.to_string()))?;
            // The crate panics on some malformed files.
            let mut inner = catch(|| Tokenizer::from_bytes(bytes))
                .map_err(not_one)?
                .map_err(|e| not_one(e.to_string()))?;
            // A file may ask for truncation or padding; lengths are ours.
            inner
                .with_truncation(None)
                .map_err(|e| format!("truncation: {e}"))?;
            inner.with_padding(None);
            let vocab = inner.get_vocab(true);
            let top = vocab.values().copied().max().unwrap_or(0) as usize;
            if vocab.is_empty() || top >= (1 << 24) {
                return Err(format!(
                    "a vocabulary of 1 to {} ids is expected, found {} \
                     tokens up to id {top}",
                    1 << 24,
                    vocab.len()
                ));
            }
            let mut known = vec![false; top + 1];
            for id in vocab.values() {
                known[*id as usize] = true;
            }
            Ok(Box::into_raw(Box::new(CoxTokenizer { inner, known })))
        })
    }
}

/// # Safety
/// `tokenizer` must come from `cox_tok_load` and not have been freed.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_free(tokenizer: *mut CoxTokenizer) {
    if !tokenizer.is_null() {
        drop(unsafe { Box::from_raw(tokenizer) });
    }
}

/// # Safety
/// Pointers as tokenizer_ffi.h says.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_encode(
    tokenizer: *const CoxTokenizer,
    text: CoxTokSlice,
    add_special_tokens: i32,
    ids: *mut CoxTokIds,
    error: *mut CoxTokBytes,
) -> i32 {
    unsafe {
        guard(ids, error, || {
            let text = text.text("text")?;
            let encoding = (*tokenizer)
                .inner
                .encode_fast(text, add_special_tokens != 0)
                .map_err(|e| e.to_string())?;
            Ok(give_ids(encoding.get_ids().iter().map(|&i| i as i32).collect()))
        })
    }
}

/// # Safety
/// Pointers as tokenizer_ffi.h says.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_decode(
    tokenizer: *const CoxTokenizer,
    ids: *const i32,
    num_ids: usize,
    skip_special_tokens: i32,
    text: *mut CoxTokBytes,
    error: *mut CoxTokBytes,
) -> i32 {
    unsafe {
        guard(text, error, || {
            let tokenizer = &*tokenizer;
            let ids: &[i32] = if num_ids == 0 {
                &[]
            } else {
                std::slice::from_raw_parts(ids, num_ids)
            };
            let mut checked = Vec::with_capacity(ids.len());
            for (at, &id) in ids.iter().enumerate() {
                let known = usize::try_from(id)
                    .ok()
                    .and_then(|i| tokenizer.known.get(i).copied())
                    .unwrap_or(false);
                if !known {
                    return Err(format!(
                        "id {id} at position {at} is not in the vocabulary of \
                         {}",
                        tokenizer.known.len()
                    ));
                }
                checked.push(id as u32);
            }
            tokenizer
                .inner
                .decode(&checked, skip_special_tokens != 0)
                .map(|s| give_bytes(s.into_bytes()))
                .map_err(|e| e.to_string())
        })
    }
}

/// # Safety
/// Pointers as tokenizer_ffi.h says.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_token_to_id(
    tokenizer: *const CoxTokenizer,
    token: CoxTokSlice,
) -> i32 {
    catch(|| unsafe {
        let token = token.text("token").ok()?;
        (*tokenizer).inner.token_to_id(token).map(|id| id as i32)
    })
    .ok()
    .flatten()
    .unwrap_or(-1)
}

/// # Safety
/// Pointers as tokenizer_ffi.h says.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_id_to_token(
    tokenizer: *const CoxTokenizer,
    id: i32,
    token: *mut CoxTokBytes,
    error: *mut CoxTokBytes,
) -> i32 {
    unsafe {
        guard(token, error, || {
            u32::try_from(id)
                .ok()
                .and_then(|i| (*tokenizer).inner.id_to_token(i))
                .map(|s| give_bytes(s.into_bytes()))
                .ok_or_else(|| format!("id {id} is not in the vocabulary"))
        })
    }
}

/// # Safety
/// Pointers as tokenizer_ffi.h says.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_vocab_size(
    tokenizer: *const CoxTokenizer,
) -> i32 {
    unsafe { (&(*tokenizer).known).len() as i32 }
}

/// # Safety
/// Pointers as tokenizer_ffi.h says.
#[no_mangle]
pub unsafe extern "C" fn cox_tok_render_chat(
    request: CoxTokSlice,
    text: *mut CoxTokBytes,
    error: *mut CoxTokBytes,
) -> i32 {
    unsafe {
        guard(text, error, || {
            chat::render(request.text("request")?)
                .map(|s| give_bytes(s.into_bytes()))
        })
    }
}
