//! docs/book.json: what the book says, and where hadal shows it.

use serde_json::Value;

/// What the book says, and where it is shown.
pub const BOOK: &str = include_str!("../../../docs/book.json");

/// The chapters of docs/book.json, in its order, each once.
pub fn chapters(book: &Value) -> Vec<&str> {
    let mut all: Vec<&str> = Vec::new();
    for chapter in list(book, "items").iter().chain(list(book, "tables")).filter_map(|x| x["chapter"].as_str()) {
        if !all.contains(&chapter) {
            all.push(chapter);
        }
    }
    all
}

/// The entries of a list; none where it is missing.
pub fn list<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of[name].as_array().map_or(&[], Vec::as_slice)
}

/// A string; empty where it is missing.
pub fn text<'a>(of: &'a Value, name: &str) -> &'a str {
    of[name].as_str().unwrap_or_default()
}
