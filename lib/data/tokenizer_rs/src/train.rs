//! Byte-pair encoding (Sennrich et al., 2016) over GPT-2's byte alphabet.
//!
//! The tokenizers crate can train too, but walks hash maps in random order
//! while it does, and a run's identity contains the tokenizer's hash. Here
//! every choice is ordered: most frequent pair first, then smallest ids.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Tokenizer,
};

use crate::Outcome;

type Pair = (u32, u32);

/// A distinct word as token ids, and how often the texts contain it.
struct Word {
    ids: Vec<u32>,
    count: i64,
}

/// Pair counts, kept current while pairs are merged.
#[derive(Default)]
struct Pairs {
    counts: HashMap<Pair, i64>,
    words: HashMap<Pair, BTreeSet<usize>>, // which words may hold the pair
    // (count when pushed, pair); an entry whose count is out of date is pushed
    // again when it comes up.
    queue: BinaryHeap<(i64, Reverse<Pair>)>,
}

impl Pairs {
    fn add(&mut self, pair: Pair, by: i64, word: usize) {
        *self.counts.entry(pair).or_default() += by;
        if by > 0 {
            self.words.entry(pair).or_default().insert(word);
        }
    }

    /// The most frequent pair with its count, or None below `min`.
    fn pop(&mut self, min: i64) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if now < min {
                continue;
            }
            if now == count {
                return Some(pair);
            }
            self.queue.push((now, Reverse(pair)));
        }
        None
    }
}

/// The text between occurrences of special tokens, which never merge.
fn without_specials<'a>(text: &'a str, specials: &[&str]) -> Vec<&'a str> {
    let mut parts = vec![text];
    for special in specials {
        parts = parts.into_iter().flat_map(|p| p.split(special)).collect();
    }
    parts
}

fn count_words(
    texts: &[&str],
    specials: &[&str],
    splitter: &ByteLevel,
) -> Outcome<BTreeMap<String, i64>> {
    let mut counts = BTreeMap::new();
    for text in texts {
        for part in without_specials(text, specials) {
            let mut pieces = PreTokenizedString::from(part);
            splitter
                .pre_tokenize(&mut pieces)
                .map_err(|e| e.to_string())?;
            let splits = pieces
                .get_splits(OffsetReferential::Original, OffsetType::Byte);
            for (piece, _, _) in splits {
                *counts.entry(piece.to_string()).or_default() += 1;
            }
        }
    }
    Ok(counts)
}

/// Replaces `pair` by `merged` in one word, reporting every pair that went
/// (-1) or came (+1).
fn merge_word(
    ids: &mut Vec<u32>,
    pair: Pair,
    merged: u32,
    mut changed: impl FnMut(Pair, i64),
) {
    let mut out: Vec<u32> = Vec::with_capacity(ids.len());
    let mut i = 0;
    while i < ids.len() {
        if i + 1 < ids.len() && (ids[i], ids[i + 1]) == pair {
            out.push(merged);
            i += 2;
        } else {
            out.push(ids[i]);
            i += 1;
        }
    }
    if out.len() == ids.len() {
        return;
    }
    for two in ids.windows(2) {
        changed((two[0], two[1]), -1);
    }
    for two in out.windows(2) {
        changed((two[0], two[1]), 1);
    }
    *ids = out;
}

fn learn_merges(
    mut words: Vec<Word>,
    tokens: &mut Vec<String>,
    vocab_size: usize,
    min_frequency: i64,
) -> Vec<(String, String)> {
    let mut pairs = Pairs::default();
    for (at, word) in words.iter().enumerate() {
        for two in word.ids.windows(2) {
            pairs.add((two[0], two[1]), word.count, at);
        }
    }
    pairs.queue =
        pairs.counts.iter().map(|(&p, &c)| (c, Reverse(p))).collect();
    let mut known: HashMap<String, u32> = tokens
        .iter()
        .enumerate()
        .map(|(id, t)| (t.clone(), id as u32))
        .collect();
    let mut merges = Vec::new();
    let mut learned = HashSet::new();
    while tokens.len() < vocab_size {
        let Some(pair) = pairs.pop(min_frequency) else { break };
        let (left, right) =
            (tokens[pair.0 as usize].clone(), tokens[pair.1 as usize].clone());
        let text = format!("{left}{right}");
        // Two different pairs can spell one token: it keeps one id.
        let merged = *known.entry(text.clone()).or_insert_with(|| {
            tokens.push(text);
            tokens.len() as u32 - 1
        });
        // A token with two spellings can bring a merged pair back.
        if learned.insert(pair) {
            merges.push((left, right));
        }
        let mut touched = BTreeSet::new();
        for at in pairs.words.remove(&pair).unwrap_or_default() {
            let word = &mut words[at];
            let count = word.count;
            merge_word(&mut word.ids, pair, merged, |p, sign| {
                pairs.add(p, sign * count, at);
                if sign > 0 {
                    touched.insert(p);
                }
            });
        }
        for p in touched {
            let count = pairs.counts[&p];
            pairs.queue.push((count, Reverse(p)));
        }
    }
    merges
}

/// The bytes of a tokenizer.json.
pub fn train_byte_level_bpe(
    texts: &[&str],
    specials: &[&str],
    vocab_size: usize,
    min_frequency: u64,
) -> Outcome<String> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let least = specials.len() + alphabet.len();
    if vocab_size < least {
        return Err(format!(
            "vocab_size: expected at least {least} (256 bytes and {} special \
             tokens), found {vocab_size}",
            specials.len()
        ));
    }
    let mut tokens: Vec<String> =
        specials.iter().map(|s| s.to_string()).collect();
    let first_byte = tokens.len() as u32;
    let byte_ids: HashMap<char, u32> = alphabet
        .iter()
        .enumerate()
        .map(|(i, &c)| (c, first_byte + i as u32))
        .collect();
    tokens.extend(alphabet.iter().map(|c| c.to_string()));

    let splitter = ByteLevel::new(
        /*add_prefix_space=*/ false,
        /*trim_offsets=*/ true,
        /*use_regex=*/ true,
    );
    let counts = count_words(texts, specials, &splitter)?;
    if counts.is_empty() {
        return Err("no text to train on".to_string());
    }
    let words = counts
        .into_iter()
        .map(|(text, count)| Word {
            ids: text.chars().map(|c| byte_ids[&c]).collect(),
            count,
        })
        .collect();
    let merges = learn_merges(
        words,
        &mut tokens,
        vocab_size,
        i64::try_from(min_frequency).unwrap_or(i64::MAX).max(1),
    );
    assemble(tokens, merges, specials, splitter)
}

fn assemble(
    tokens: Vec<String>,
    merges: Vec<(String, String)>,
    specials: &[&str],
    splitter: ByteLevel,
) -> Outcome<String> {
    let vocab: ahash::AHashMap<String, u32> = tokens
        .into_iter()
        .enumerate()
        .map(|(id, t)| (t, id as u32))
        .collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|e| e.to_string())?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(splitter));
    tokenizer.with_decoder(Some(splitter));
    let added: Vec<AddedToken> =
        specials.iter().map(|s| AddedToken::from(*s, true)).collect();
    tokenizer
        .add_special_tokens(added)
        .map_err(|e| e.to_string())?;
    tokenizer.to_string(/*pretty=*/ false).map_err(|e| e.to_string())
}
