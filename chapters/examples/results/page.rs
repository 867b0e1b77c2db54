//! docs/results.md from two files: docs/book.json, what the book says and where hadal shows it, and docs/results.jsonl, what runs
//! of the chapters have brought. No figure of ours is typed: the test `the_page_is_what_the_records_say` makes the page again.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::Value;

use super::book::{list, text};

/// The records of a file of JSON lines.
pub fn parse_records(lines: &str) -> Result<Vec<Value>, serde_json::Error> {
    lines.lines().filter(|l| !l.trim().is_empty()).map(serde_json::from_str).collect()
}

/// The whole page.
pub fn render(book: &Value, records: &[Value]) -> String {
    let mut out = String::from(
        "# The book's figures and ours\n\n\
         Made by `cargo run --release --example results` from [results.jsonl](results.jsonl), which that command writes, and from\n\
         [book.json](book.json), the figures that *Dive into Deep Learning* (MXNet edition, 2019) prints. Do not edit: a test makes\n\
         this page again and compares.\n\n\
         Ours is the mean over the seeds, in brackets the least and the greatest value. Accuracy is a share of images; the loss is the\n\
         mean over an epoch, each image with the weights before its step; time is in seconds an epoch, the test pass included, and\n\
         depends on what else the machine did.\n",
    );
    for table in list(book, "tables") {
        section(&mut out, table, records);
    }
    out.push_str("\n## Each thing that the book names\n\n");
    out.push_str(
        "Programs are in `chapters/examples/`; what they print is checked on every context by `chapters/tests/chapters.rs`.\n\n",
    );
    out.push_str("| | the book | printed by hadal | program | tests |\n| --- | --- | --- | --- | --- |\n");
    for item in list(book, "items") {
        let chapter = text(item, "chapter");
        let prints: Vec<String> =
            list(item, "prints").iter().filter_map(Value::as_str).map(|line| format!("`{}`", escape(line))).collect();
        let tests: Vec<String> =
            list(item, "tests").iter().filter_map(Value::as_str).map(|t| format!("`{}`", t.replace("::", " "))).collect();
        let program = if chapter.is_empty() { String::new() } else { format!("[{chapter}](../chapters/examples/{chapter}.rs)") };
        let row = [text(item, "item").to_owned(), escape(text(item, "book")), prints.join("<br>"), program, tests.join("<br>")];
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    out
}

/// A table: the book's figures, then ours for every device that it ran on.
fn section(out: &mut String, table: &Value, records: &[Value]) {
    let (chapter, row) = (text(table, "chapter"), text(table, "row"));
    let _ = write!(out, "\n## {}\n\n`cargo run --release --example {chapter}`{}\n", text(table, "title"), text(table, "note"));
    // Device -> figure -> epoch -> one value a seed.
    let mut runs: BTreeMap<String, BTreeMap<&str, BTreeMap<u64, Vec<f64>>>> = BTreeMap::new();
    for r in records.iter().filter(|r| text(r, "chapter") == chapter && text(r, "row") == row && r["quick"] == false) {
        let device = format!("{} ({})", text(r, "context"), text(r, "device"));
        let (Some(epoch), Some(value)) = (r["epoch"].as_u64(), r["value"].as_f64()) else { continue };
        runs.entry(device).or_default().entry(text(r, "name")).or_default().entry(epoch).or_default().push(value);
    }
    let names: Vec<&str> = list(table, "figures").iter().filter_map(Value::as_str).collect();
    let said = |name: &str, epoch: u64| {
        let value = table["book"][name].get(epoch.saturating_sub(1) as usize).and_then(Value::as_f64);
        value.map(|v| format!("{v:.0$}", digits(name)))
    };
    let epochs = names.iter().filter_map(|n| table["book"][*n].as_array()).map(Vec::len).max().unwrap_or(0) as u64;
    if runs.is_empty() {
        out.push_str("\n**Not yet run");
        out.push_str(if table["gpu"] == true { " on a GPU" } else { "" });
        out.push_str("**");
        out.push_str(if epochs > 0 { "; the book's figures:\n" } else { ".\n" });
    }
    let shown: Vec<(Option<&String>, u64)> = if runs.is_empty() {
        vec![(None, epochs)]
    } else {
        let last = |r: &BTreeMap<&str, BTreeMap<u64, Vec<f64>>>| r.values().filter_map(|e| e.keys().max()).max().copied();
        runs.iter().map(|(device, r)| (Some(device), last(r).unwrap_or(0))).collect()
    };
    for (device, last) in shown {
        let Some(figures) = device.map_or(Some(None), |d| runs.get(d).map(Some)) else { continue };
        if let (Some(device), Some(figures)) = (device, figures) {
            let seeds = figures.values().flat_map(|e| e.values()).map(Vec::len).max().unwrap_or(0);
            let _ = writeln!(out, "\non {device}, {seeds} seed{}:", if seeds == 1 { "" } else { "s" });
        }
        if last == 0 {
            continue;
        }
        let _ = write!(out, "\n| epoch |");
        for (said, name) in names.iter().map(|n| (table["book"][*n].is_array(), n)) {
            out.push_str(&if said { format!(" {name}: book |") } else { String::new() });
            out.push_str(&if figures.is_some() { format!(" {name}: hadal |") } else { String::new() });
        }
        let columns =
            1 + names.iter().map(|n| usize::from(table["book"][*n].is_array()) + usize::from(figures.is_some())).sum::<usize>();
        let _ = writeln!(out, "\n|{}", " --- |".repeat(columns));
        for epoch in 1..=last {
            let _ = write!(out, "| {epoch} |");
            for name in &names {
                if table["book"][*name].is_array() {
                    let _ = write!(out, " {} |", said(name, epoch).unwrap_or_default());
                }
                if let Some(figures) = figures {
                    let values = figures.get(name).and_then(|e| e.get(&epoch)).map_or(&[][..], Vec::as_slice);
                    let _ = write!(out, " {} |", spread(name, values));
                }
            }
            out.push('\n');
        }
    }
}

/// Digits after the point, as the book prints them.
fn digits(name: &str) -> usize {
    match name {
        "loss" => 4,
        "time" => 1,
        _ => 3,
    }
}

/// The mean, and the range where there are several.
fn spread(name: &str, values: &[f64]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let digits = digits(name);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let (lo, hi) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    if values.len() == 1 { format!("{mean:.digits$}") } else { format!("**{mean:.digits$}** ({lo:.digits$}–{hi:.digits$})") }
}

/// For a cell of a table.
fn escape(s: &str) -> String {
    s.replace('|', "\\|")
}
