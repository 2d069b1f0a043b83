//! A Hugging Face tokenizer in which special tokens come only from where the caller says.
//!
//! The library can turn all special strings into tokens or none. To have some, each special token gets a twin: an added
//! token, not special, with the same content moved to unassigned planes of Unicode. A cut of the text is replaced by the
//! twin, everything is encoded in one pass with special parsing off (so that spaces around, prefixes and offsets are
//! what Hugging Face makes of them), and twins become the special ids they stand for.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{json, Value};
use tokenizers::{AddedToken, Encoding, Token, Tokenizer};

use crate::Result;

const MAX_TOKENS: u32 = 1 << 24;
const PRESENT: u8 = 1;
const SPECIAL: u8 = 2;
const BYTE: u8 = 4;

const TWIN_PLANES: u32 = 0x40000;
/// An added token that no text needs: keeps a model from joining what stands at its two sides.
const BREAK: &str = "\u{7FFFF}";

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cut {
    begin: usize,
    end: usize,
    id: i32,
}

struct Special {
    id: u32,
    content: String,
    twin: String,
}

pub struct TextTokenizer {
    tokenizer: Tokenizer,
    flags: Vec<u8>,
    special: Vec<Special>, // by id
    special_of_twin: HashMap<u32, u32>,
    break_id: u32,
    /// What the model says for a character that it does not know; may be a special token.
    unknown: HashSet<u32>,
    byte_level: bool,
    byte_of_char: HashMap<char, u8>,
}

impl TextTokenizer {
    pub fn new(json: &str) -> Result<TextTokenizer> {
        let mut tokenizer: Tokenizer = json.parse().map_err(|e| format!("not a tokenizer: {e}"))?;
        // Limits and padding are the caller's business; transformers resets both as well.
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        tokenizer.set_encode_special_tokens(true);
        check_added_ids(json, &tokenizer)?;

        let decoders = decoder_types(&tokenizer);
        let byte_fallback = decoders.iter().any(|d| d == "ByteFallback");
        let flags = token_flags(&tokenizer, byte_fallback)?;
        let special = special_tokens(&tokenizer);
        let unknown = ids_of(&tokenizer, "\u{10FFFF}")?.into_iter().collect();
        let (special_of_twin, break_id) = add_twins(&mut tokenizer, &special, flags.len() as u32)?;
        Ok(TextTokenizer {
            tokenizer,
            flags,
            special,
            special_of_twin,
            break_id,
            unknown,
            byte_level: decoders.first().is_some_and(|d| d == "ByteLevel")
                && decoders[1..].iter().all(|d| d == "Fuse"),
            byte_of_char: byte_alphabet(),
        })
    }

    pub fn describe(&self) -> String {
        let special: Vec<Value> = self.special.iter().map(|s| json!([s.id, s.content])).collect();
        json!({"byte_level": self.byte_level, "special": special}).to_string()
    }

    pub fn flags(&self) -> &[u8] {
        &self.flags
    }

    pub fn id(&self, content: &str) -> Option<u32> {
        self.tokenizer.token_to_id(content).filter(|&id| self.has(id, PRESENT))
    }

    pub fn encode(&self, text: &str, cuts: &[Cut], add_special: bool) -> Result<Vec<u32>> {
        self.check_cuts(text, cuts)?;
        let mut ids = self.encode_once(text, cuts, false)?;
        // Models that look whole strings up (Unigram, WordLevel) may find a special token without being told to.
        if ids.stray || (ids.unknown && self.special.iter().any(|s| text.contains(&s.content))) {
            ids = self.encode_once(text, cuts, true)?;
            if ids.stray {
                return Err("the text turns into a special token of this tokenizer".to_string());
            }
        }
        if !add_special {
            return Ok(ids.ids);
        }
        let tokens = ids.ids.iter().map(|&id| Token::new(id, String::new(), (0, 0))).collect();
        let encoding = self
            .tokenizer
            .post_process(Encoding::from_tokens(tokens, 0), None, true)
            .map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    pub fn decode(&self, ids: &[i32], skip_special: bool) -> Result<String> {
        let ids: Vec<u32> = ids.iter().map(|&id| self.checked(id)).collect::<Result<_>>()?;
        self.tokenizer.decode(&ids, skip_special).map_err(|e| e.to_string())
    }

    pub fn token_bytes(&self, id: i32) -> Result<Vec<u8>> {
        let id = self.checked(id)?;
        let token = self.tokenizer.id_to_token(id).unwrap_or_default();
        if self.byte_level {
            // As the ByteLevel decoder does it: a token with any other character stands for itself.
            let bytes: Option<Vec<u8>> = token.chars().map(|c| self.byte_of_char.get(&c).copied()).collect();
            return Ok(bytes.unwrap_or_else(|| token.into_bytes()));
        }
        if self.has(id, BYTE) {
            return Ok(byte_token(&token).into_iter().collect());
        }
        // Inside a text, not at its beginning, where decoders drop a space.
        let text = |ids: &[u32]| self.tokenizer.decode(ids, false).unwrap_or_default();
        let (once, twice) = (text(&[id]), text(&[id, id]));
        Ok(twice.strip_prefix(&once).unwrap_or(&once).as_bytes().to_vec())
    }

    fn has(&self, id: u32, flag: u8) -> bool {
        self.flags.get(id as usize).is_some_and(|f| f & flag != 0)
    }

    fn special_of(&self, id: i32) -> Option<&Special> {
        let id = u32::try_from(id).ok()?;
        self.special.binary_search_by_key(&id, |s| s.id).ok().map(|at| &self.special[at])
    }

    fn checked(&self, id: i32) -> Result<u32> {
        let found = u32::try_from(id).ok().filter(|&id| self.has(id, PRESENT));
        found.ok_or_else(|| format!("token id {id} has no entry in the tokenizer ({} ids)", self.flags.len()))
    }

    fn check_cuts(&self, text: &str, cuts: &[Cut]) -> Result<()> {
        let mut end = 0;
        for cut in cuts {
            let content = text.get(cut.begin..cut.end).filter(|_| cut.begin >= end);
            let special = self.special_of(cut.id);
            if content.is_none() || content != special.map(|s| s.content.as_str()) {
                return Err(format!("bytes {}..{} are not the special token {}", cut.begin, cut.end, cut.id));
            }
            end = cut.end;
        }
        Ok(())
    }

    fn encode_once(&self, text: &str, cuts: &[Cut], with_breaks: bool) -> Result<Ids> {
        let plain = |piece| if with_breaks { self.broken(piece) } else { Cow::Borrowed(piece) };
        let input = if cuts.is_empty() {
            plain(text)
        } else {
            let mut input = String::with_capacity(text.len() + text.len() / 4);
            let mut done = 0;
            for cut in cuts {
                input.push_str(&plain(&text[done..cut.begin]));
                input.push_str(self.special_of(cut.id).map_or("", |s| s.twin.as_str()));
                done = cut.end;
            }
            input.push_str(&plain(&text[done..]));
            Cow::Owned(input)
        };

        let mut result = Ids::default();
        let mut expected = cuts.iter();
        for id in ids_of(&self.tokenizer, &input)? {
            if id == self.break_id && with_breaks {
                continue;
            }
            if let Some(&special) = self.special_of_twin.get(&id) {
                if expected.next().map(|cut| cut.id as u32) != Some(special) {
                    return Err(
                        "the text holds unassigned code points that this tokenizer uses itself".to_string()
                    );
                }
                result.ids.push(special);
                continue;
            }
            let special = self.has(id, SPECIAL);
            result.unknown |= special && self.unknown.contains(&id);
            result.stray |= special && !self.unknown.contains(&id);
            if !self.has(id, PRESENT) {
                return Err(
                    "the text holds unassigned code points that this tokenizer uses itself".to_string()
                );
            }
            result.ids.push(id);
        }
        match expected.next() {
            None => Ok(result),
            Some(cut) => Err(format!("special token {} at byte {} was not recognised", cut.id, cut.begin)),
        }
    }

    /// A BREAK after the first character of each special string.
    fn broken<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut breaks: Vec<usize> = Vec::new();
        for special in &self.special {
            let first = special.content.chars().next().map_or(0, char::len_utf8);
            breaks.extend(text.match_indices(&special.content).map(|(at, _)| at + first));
        }
        if breaks.is_empty() {
            return Cow::Borrowed(text);
        }
        breaks.sort_unstable();
        breaks.dedup();
        let mut result = String::with_capacity(text.len() + breaks.len() * BREAK.len());
        let mut done = 0;
        for at in breaks {
            result.push_str(&text[done..at]);
            result.push_str(BREAK);
            done = at;
        }
        result.push_str(&text[done..]);
        Cow::Owned(result)
    }
}

#[derive(Default)]
struct Ids {
    ids: Vec<u32>,
    stray: bool,   // a special token that no cut asked for
    unknown: bool, // the special token for what the model does not know
}

fn ids_of(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|e| e.to_string())?;
    Ok(encoding.get_ids().to_vec())
}

/// The library numbers added tokens itself and only logs when the file says otherwise: then ids would mean other rows of
/// the model's embedding than they did in training.
fn check_added_ids(json: &str, tokenizer: &Tokenizer) -> Result<()> {
    let file: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let content = token["content"].as_str().unwrap_or_default();
        let id = tokenizer.token_to_id(content).map(u64::from);
        if !content.is_empty() && id != token["id"].as_u64() {
            return Err(format!(
                "added token {content:?} has id {} in the file but {} after the vocabulary",
                token["id"],
                id.map_or("none".to_string(), |id| id.to_string())
            ));
        }
    }
    Ok(())
}

fn decoder_types(tokenizer: &Tokenizer) -> Vec<String> {
    let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
    let kind = |d: &Value| d["type"].as_str().unwrap_or_default().to_string();
    match decoder["decoders"].as_array() {
        Some(decoders) => decoders.iter().map(kind).collect(),
        None => vec![kind(&decoder)],
    }
}

fn token_flags(tokenizer: &Tokenizer, byte_fallback: bool) -> Result<Vec<u8>> {
    let vocabulary = tokenizer.get_vocab(true);
    let largest = vocabulary.values().copied().max().ok_or("the vocabulary is empty")?;
    if largest >= MAX_TOKENS {
        return Err(format!("token id {largest} is beyond {MAX_TOKENS}"));
    }
    let mut flags = vec![0; largest as usize + 1];
    for (token, id) in &vocabulary {
        flags[*id as usize] |= PRESENT;
        if byte_fallback && byte_token(token).is_some() {
            flags[*id as usize] |= BYTE;
        }
    }
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        if token.special {
            flags[id as usize] |= SPECIAL;
        }
    }
    Ok(flags)
}

fn special_tokens(tokenizer: &Tokenizer) -> Vec<Special> {
    let twin = |c: char| match c as u32 {
        low @ 0..TWIN_PLANES => char::from_u32(low + TWIN_PLANES).unwrap_or(c),
        _ => c,
    };
    let mut special: Vec<Special> = tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special && !token.content.is_empty())
        .map(|(id, token)| Special {
            id,
            twin: token.content.chars().map(twin).collect(),
            content: token.content,
        })
        .collect();
    special.sort_by_key(|s| s.id);
    special
}

/// Returns what each twin stands for, and the id of BREAK.
fn add_twins(
    tokenizer: &mut Tokenizer,
    special: &[Special],
    n_tokens: u32,
) -> Result<(HashMap<u32, u32>, u32)> {
    let originals = tokenizer.get_added_tokens_decoder();
    let mut twins: Vec<AddedToken> = vec![AddedToken::from(BREAK, false).normalized(false)];
    for s in special {
        let mut token = originals[&s.id].clone();
        token.content = s.twin.clone();
        token.special = false;
        token.normalized = false; // it stands where the original was found, whatever normalisation does
        twins.push(token);
    }
    tokenizer.add_tokens(&twins);
    let id_of = |token: &str| match tokenizer.token_to_id(token) {
        Some(id) if id >= n_tokens => Ok(id),
        _ => Err(format!("the vocabulary has holes below {n_tokens} or tokens of unassigned code points")),
    };
    let mut special_of_twin = HashMap::new();
    for s in special {
        special_of_twin.insert(id_of(&s.twin)?, s.id);
    }
    Ok((special_of_twin, id_of(BREAK)?))
}

fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (token.len() == 6).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, other bytes for what follows U+0100.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut others = 0;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => (char::from(byte), byte),
            _ => {
                others += 1;
                (char::from_u32(0xFF + others).unwrap_or_default(), byte)
            }
        })
        .collect()
}
