//! The C interface of engine/text (see ../t6_text.h, which says what each entry promises).
//! This file holds what every entry shares: slices, owned buffers, limits, and the guard that turns errors and panics
//! into a code and a message. The unsafe parts of the library are all here.

mod budget;
mod python_json;
mod template;
mod tokenizer;

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

use template::ChatTemplate;
use tokenizer::{Cut, TextTokenizer};

const MAX_TOKENIZER: usize = 256 << 20;
const MAX_TEXT: usize = 64 << 20; // a rendered prompt may be longer than the request's own limit
const MAX_IDS: usize = 16 << 20;
const MAX_TEMPLATE: usize = 256 << 10;
const MAX_VARIABLES: usize = 256 << 20; // JSON may need six bytes for one of the request's

const OK: i32 = 0;
const INVALID: i32 = 1;
const PANIC: i32 = 2;

pub type Result<T> = std::result::Result<T, String>;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slice {
    data: *const u8,
    size: usize,
}

#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    size: usize,
}

impl Buffer {
    const EMPTY: Buffer = Buffer { data: std::ptr::null_mut(), size: 0 };

    fn from_vec(bytes: Vec<u8>) -> Buffer {
        if bytes.is_empty() {
            return Buffer::EMPTY;
        }
        let bytes = bytes.into_boxed_slice();
        Buffer { size: bytes.len(), data: Box::into_raw(bytes) as *mut u8 }
    }
}

impl Slice {
    /// Safety: data points to size bytes that live for 'a.
    unsafe fn bytes<'a>(self, what: &str, limit: usize) -> Result<&'a [u8]> {
        unsafe { array(self.data, self.size, what, limit) }
    }

    /// Safety: as bytes().
    unsafe fn text<'a>(self, what: &str, limit: usize) -> Result<&'a str> {
        let bytes = unsafe { self.bytes(what, limit)? };
        std::str::from_utf8(bytes)
            .map_err(|e| format!("{what} is not valid UTF-8 at byte {}", e.valid_up_to()))
    }
}

/// Safety: data points to size items that live for 'a.
unsafe fn array<'a, T>(data: *const T, size: usize, what: &str, limit: usize) -> Result<&'a [T]> {
    if size > limit {
        return Err(format!("{what} has {size} bytes or items, more than {limit}"));
    }
    if size == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(format!("{what} is null"));
    }
    Ok(unsafe { std::slice::from_raw_parts(data, size) })
}

pub fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("unknown panic")
}

/// Runs one entry. A panic becomes an error like any other, so the default hook's print would only be noise.
fn guard(out: *mut Buffer, entry: impl FnOnce() -> Result<Vec<u8>>) -> i32 {
    static SILENCE: Once = Once::new();
    SILENCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let (code, bytes) = match catch_unwind(AssertUnwindSafe(entry)) {
        Ok(Ok(bytes)) => (OK, bytes),
        Ok(Err(message)) => (INVALID, message.into_bytes()),
        Err(payload) => (PANIC, panic_text(&*payload).as_bytes().to_vec()),
    };
    if !out.is_null() {
        // Safety: the header asks for a pointer to a buffer; what it held before is not ours.
        unsafe { out.write(Buffer::from_vec(bytes)) };
    }
    code
}

/// Safety: handle is null or came from Box::into_raw and is still alive.
unsafe fn borrow<'a, T>(handle: *const T) -> Result<&'a T> {
    unsafe { handle.as_ref() }.ok_or_else(|| "the handle is null".to_string())
}

fn give<T>(handle: *mut *mut T, value: T) -> Result<Vec<u8>> {
    if handle.is_null() {
        return Err("no place for the handle".to_string());
    }
    // Safety: not null, and the header asks for a pointer to a handle.
    unsafe { handle.write(Box::into_raw(Box::new(value))) };
    Ok(Vec::new())
}

/// Safety: handle is null or came from give() and was not freed.
unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        let value = unsafe { Box::from_raw(handle) };
        let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
    }
}

// The safety of every entry below: pointers are what t6_text.h says they are.

#[no_mangle]
pub unsafe extern "C" fn t6_text_free(buffer: Buffer) {
    if !buffer.data.is_null() {
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(buffer.data, buffer.size)) });
    }
}

#[no_mangle]
pub unsafe extern "C" fn t6_tokenizer_new(
    json: Slice,
    handle: *mut *mut TextTokenizer,
    out: *mut Buffer,
) -> i32 {
    guard(out, || {
        let json = unsafe { json.text("tokenizer.json", MAX_TOKENIZER)? };
        give(handle, TextTokenizer::new(json)?)
    })
}

#[no_mangle]
pub unsafe extern "C" fn t6_tokenizer_free(handle: *mut TextTokenizer) {
    unsafe { free(handle) }
}

#[no_mangle]
pub unsafe extern "C" fn t6_tokenizer_describe(handle: *const TextTokenizer, out: *mut Buffer) -> i32 {
    guard(out, || Ok(unsafe { borrow(handle)? }.describe().into_bytes()))
}

#[no_mangle]
pub unsafe extern "C" fn t6_tokenizer_flags(handle: *const TextTokenizer, out: *mut Buffer) -> i32 {
    guard(out, || Ok(unsafe { borrow(handle)? }.flags().to_vec()))
}

#[no_mangle]
pub unsafe extern "C" fn t6_tokenizer_id(handle: *const TextTokenizer, content: Slice) -> i32 {
    let mut id = -1;
    guard(std::ptr::null_mut(), || {
        let content = unsafe { content.text("content", MAX_TEXT)? };
        id = unsafe { borrow(handle)? }.id(content).map_or(-1, |id| id as i32);
        Ok(Vec::new())
    });
    id
}

#[no_mangle]
pub unsafe extern "C" fn t6_tokenizer_encode(
    handle: *const TextTokenizer,
    text: Slice,
    cuts: *const Cut,
    n_cuts: usize,
    add_special: i32,
    out: *mut Buffer,
) -> i32 {
    guard(out, || {
        let text = unsafe { text.text("text", MAX_TEXT)? };
        let cuts = unsafe { array(cuts, n_cuts, "cuts", MAX_TEXT)? };
        let ids = unsafe { borrow(handle)? }.encode(text, cuts, add_special != 0)?;
        Ok(ids.iter().flat_map(|id| id.to_ne_bytes()).collect())
    })
}

#[no_mangle]
pub unsafe extern "C" fn t6_tokenizer_decode(
    handle: *const TextTokenizer,
    ids: *const i32,
    n_ids: usize,
    skip_special: i32,
    out: *mut Buffer,
) -> i32 {
    guard(out, || {
        let ids = unsafe { array(ids, n_ids, "ids", MAX_IDS)? };
        let text = unsafe { borrow(handle)? }.decode(ids, skip_special != 0)?;
        Ok(text.into_bytes())
    })
}

#[no_mangle]
pub unsafe extern "C" fn t6_tokenizer_token_bytes(
    handle: *const TextTokenizer,
    id: i32,
    out: *mut Buffer,
) -> i32 {
    guard(out, || unsafe { borrow(handle)? }.token_bytes(id))
}

#[no_mangle]
pub unsafe extern "C" fn t6_template_new(
    source: Slice,
    globals: Slice,
    handle: *mut *mut ChatTemplate,
    out: *mut Buffer,
) -> i32 {
    guard(out, || {
        let source = unsafe { source.text("the chat template", MAX_TEMPLATE)? };
        let globals = unsafe { globals.bytes("the variables", MAX_VARIABLES)? };
        give(handle, ChatTemplate::new(source, globals)?)
    })
}

#[no_mangle]
pub unsafe extern "C" fn t6_template_free(handle: *mut ChatTemplate) {
    unsafe { free(handle) }
}

#[no_mangle]
pub unsafe extern "C" fn t6_template_render(
    handle: *const ChatTemplate,
    variables: Slice,
    out: *mut Buffer,
) -> i32 {
    guard(out, || {
        let variables = unsafe { variables.bytes("the variables", MAX_VARIABLES)? };
        unsafe { borrow(handle)? }.render(variables)
    })
}
