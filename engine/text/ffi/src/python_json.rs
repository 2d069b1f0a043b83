//! json.dumps as transformers gives it to chat templates.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde_json::Value as Json;

const MAX_INDENT: usize = 64;

struct Style {
    indent: Option<usize>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

/// The filter tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False).
pub fn tojson(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let invalid = |message: &str| Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"));
    let indent: Option<usize> = kwargs.get("indent")?;
    if indent.is_some_and(|n| n > MAX_INDENT) {
        return Err(invalid("indent is too large"));
    }
    let (item, key) = match kwargs.get::<Option<Vec<String>>>("separators")? {
        Some(pair) if pair.len() == 2 => (pair[0].clone(), pair[1].clone()),
        Some(_) => return Err(invalid("separators is not a pair of strings")),
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
    };
    let style = Style {
        indent,
        item,
        key,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(&value).map_err(|e| invalid(&e.to_string()))?;
    let mut out = String::new();
    write(&json, &style, 0, &mut out);
    Ok(out)
}

fn write(json: &Json, style: &Style, depth: usize, out: &mut String) {
    match json {
        Json::String(s) => write_string(s, style, out),
        Json::Array(items) => {
            write_items(('[', ']'), items.iter(), style, depth, out, |item, out| {
                write(item, style, depth + 1, out);
            });
        }
        Json::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(key, _)| *key);
            }
            write_items(('{', '}'), entries.into_iter(), style, depth, out, |(key, value), out| {
                write_string(key, style, out);
                out.push_str(&style.key);
                write(value, style, depth + 1, out);
            });
        }
        other => out.push_str(&other.to_string()),
    }
}

fn write_items<T>(
    (open, close): (char, char),
    items: impl ExactSizeIterator<Item = T>,
    style: &Style,
    depth: usize,
    out: &mut String,
    mut write_item: impl FnMut(T, &mut String),
) {
    let new_line = |depth: usize, out: &mut String| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let empty = items.len() == 0;
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(&style.item);
        }
        new_line(depth + 1, out);
        write_item(item, out);
    }
    if !empty {
        new_line(depth, out);
    }
    out.push(close);
}

fn write_string(s: &str, style: &Style, out: &mut String) {
    let quoted = Json::from(s).to_string();
    if !style.ensure_ascii {
        return out.push_str(&quoted);
    }
    for c in quoted.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}
