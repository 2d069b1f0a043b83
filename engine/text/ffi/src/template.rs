//! A Hugging Face chat template: Jinja as transformers sets it up, in a sandbox of limited steps, memory, output and depth.

use std::ffi::CString;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

use crate::python_json::tojson;
use crate::{budget, panic_text, Result};

const NAME: &str = "chat";
/// A marked rendering (special_marks.h) takes four bytes for one of the 64 MiB that a prompt may have.
const MAX_OUTPUT: usize = 256 << 20;
const FUEL: u64 = 2_000_000; // steps; a chat of 4096 messages takes some 400,000
const MAX_CALL_DEPTH: usize = 100;
/// Expressions nest as deep as a template is long, and values as deep as a loop runs: both are walked by recursion.
/// Only what is touched costs memory.
const STACK: usize = 512 << 20;
/// What a template may hold: a string that is appended to itself forty times would be larger than any memory. So many bytes
/// for each of the variables', which a list of their characters takes, and what small ones never need.
const MEMORY_PER_BYTE: usize = 64;
const LEAST_MEMORY: usize = 256 << 20;

pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    globals: serde_json::Map<String, serde_json::Value>,
    /// Memory that a template ran out of stays lost (budget.rs), so it happens once.
    ran_out: AtomicBool,
}

impl ChatTemplate {
    pub fn new(source: &str, globals: &[u8]) -> Result<ChatTemplate> {
        let globals = serde_json::from_slice(globals).map_err(|e| format!("variables: {e}"))?;
        let source = in_minijinja(&source.replace("\r\n", "\n").replace('\r', "\n")); // as Jinja2 sees line ends
        let environment = on_deep_stack(source.len(), move || {
            let mut environment = Environment::new();
            environment.set_trim_blocks(true);
            environment.set_lstrip_blocks(true);
            environment.set_auto_escape_callback(|_| AutoEscape::None);
            environment.set_formatter(|out, state, value| match value.kind() {
                ValueKind::None => Ok(out.write_str("None")?),
                ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
                _ => minijinja::escape_formatter(out, state, value),
            });
            environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
            environment.set_fuel(Some(FUEL));
            environment.set_recursion_limit(MAX_CALL_DEPTH);
            environment.add_filter("tojson", tojson);
            environment.add_function("raise_exception", raise_exception);
            environment.add_function("strftime_now", strftime_now);
            environment.add_template_owned(NAME, source).map_err(|e| describe(&e))?;
            Ok(Arc::new(environment))
        })
        .map_err(Failure::message)?;
        Ok(ChatTemplate { environment, globals, ran_out: AtomicBool::new(false) })
    }

    pub fn render(&self, variables: &[u8]) -> Result<Vec<u8>> {
        if self.ran_out.load(Ordering::Relaxed) {
            return Err("the chat template ran out of memory before, and is not tried again".to_string());
        }
        let size = variables.len();
        let mut all = self.globals.clone();
        let variables: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(variables).map_err(|e| format!("variables: {e}"))?;
        all.extend(variables);
        let environment = self.environment.clone();
        let rendered = on_deep_stack(size, move || {
            let template = environment.get_template(NAME).map_err(|e| describe(&e))?;
            let mut output = Output::default();
            let result = template.render_captured_to(Value::from_serialize(&all), &mut output);
            match result {
                _ if output.full => {
                    Err(format!("the chat template's output is longer than {MAX_OUTPUT} bytes"))
                }
                Ok(_) => Ok(output.bytes),
                Err(e) => Err(describe(&e)),
            }
        });
        rendered.map_err(|failure| {
            self.ran_out.fetch_or(matches!(failure, Failure::Memory(_)), Ordering::Relaxed);
            failure.message()
        })
    }
}

enum Failure {
    Memory(usize),
    Other(String),
}

impl Failure {
    fn message(self) -> String {
        match self {
            Failure::Memory(bytes) => format!("the chat template needs more than {bytes} bytes of memory"),
            Failure::Other(message) => message,
        }
    }
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Output {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if piece.len() > MAX_OUTPUT - self.bytes.len() {
            self.full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `size`: bytes of what is worked on.
fn on_deep_stack<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> std::result::Result<T, Failure> {
    let memory = LEAST_MEMORY + MEMORY_PER_BYTE * size;
    match budget::run(STACK, memory, work) {
        Ok(result) => result.map_err(Failure::Other),
        Err(budget::Failure::Memory) => Err(Failure::Memory(memory)),
        Err(budget::Failure::Panic(payload)) => {
            Err(Failure::Other(format!("the chat template failed: {}", panic_text(&*payload))))
        }
        Err(budget::Failure::NoThread(e)) => {
            Err(Failure::Other(format!("no thread for the chat template: {e}")))
        }
    }
}

fn describe(error: &Error) -> String {
    match error.detail() {
        // raise_exception: the template's own words are the message.
        Some(detail) if error.kind() == ErrorKind::InvalidOperation && error.name().is_none() => {
            detail.to_string()
        }
        _ => error.to_string(),
    }
}

fn raise_exception(message: String) -> std::result::Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// strftime of the local time, by the C library as Python does it.
fn strftime_now(format: String) -> std::result::Result<String, Error> {
    let invalid =
        || Error::new(ErrorKind::InvalidOperation, format!("strftime_now: cannot format {format:?}"));
    if format.is_empty() {
        return Ok(String::new());
    }
    let c_format = CString::new(format.as_str()).map_err(|_| invalid())?;
    let mut buffer = vec![0u8; 1024];
    // Safety: all pointers are to live objects, and strftime is told the size of the buffer.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut parts).is_null() {
            return Err(invalid());
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), c_format.as_ptr(), &parts)
    };
    buffer.truncate(length);
    match String::from_utf8(buffer) {
        Ok(text) if !text.is_empty() => Ok(text),
        _ => Err(invalid()),
    }
}

/// What Jinja2 and transformers understand and minijinja does not, said in other words:
/// {% generation %} ... {% endgeneration %}, which marks an assistant's words for training and here only groups them, and
/// a backslash at a line's end inside a tag, which continues a string literal on the next line.
fn in_minijinja(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let close = match rest[start..].as_bytes().get(1) {
            Some(b'%') => "%}",
            Some(b'{') => "}}",
            _ => {
                result.push_str(&rest[..start + 1]);
                rest = &rest[start + 1..];
                continue;
            }
        };
        let Some(length) = rest[start..].find(close) else { break };
        result.push_str(&rest[..start]);
        result.push_str(&tag_in_minijinja(&rest[start..start + length]));
        rest = &rest[start + length..];
    }
    result.push_str(rest);
    result
}

fn tag_in_minijinja(tag: &str) -> String {
    let word = tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['-', '+']).trim();
    match word {
        "generation" => return tag.replace(word, "if true"),
        "endgeneration" => return tag.replace(word, "endif"),
        _ => {}
    }
    let mut result = String::with_capacity(tag.len());
    let mut escaped = false;
    for c in tag.chars() {
        if escaped && c == '\n' {
            result.pop();
        } else {
            result.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    result
}
