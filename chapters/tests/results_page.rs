//! docs/results.md: made of the records that it says, and naming what is there. These tests read the sources; a bundle leaves them out.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

#[path = "../examples/results/book.rs"]
mod book;
#[path = "../examples/results/page.rs"]
mod page;

use book::{list, text};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn docs() -> PathBuf {
    root().join("docs")
}

fn said() -> Value {
    serde_json::from_str(book::BOOK).expect("docs/book.json")
}

/// The names of the files that have a chapter in them.
fn chapters_in_sources() -> BTreeSet<String> {
    let files = fs::read_dir(root().join("chapters/examples"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "rs"));
    files
        .filter(|p| fs::read_to_string(p).unwrap().contains("book::run"))
        .map(|p| p.file_stem().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn every_chapter_has_its_place_on_the_page() {
    let said = said();
    let named: BTreeSet<String> = book::chapters(&said).iter().map(|n| n.to_string()).collect();
    assert_eq!(named, chapters_in_sources());
    for item in list(&said, "items") {
        let shown = list(item, "prints").len() + list(item, "tests").len();
        assert!(shown > 0, "nothing shows {:?}", text(item, "item"));
    }
}

#[test]
fn the_tests_that_the_page_names_exist() {
    for test in list(&said(), "items").iter().flat_map(|i| list(i, "tests")).filter_map(Value::as_str) {
        let (file, name) = test.split_once("::").unwrap_or((test, ""));
        let source = fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(source.contains(&format!("fn {name}(")), "{file} has no test {name}");
    }
}

/// Std's macros panic when the reader of a pipe leaves (`| head`), so programs take hadal's.
#[test]
fn programs_print_with_macros_that_outlive_their_reader() {
    let mut folders = ["examples", "chapters/examples", "chapters/src", "src/bin"].map(|f| root().join(f)).to_vec();
    let mut programs = 0;
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code: String = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
                let imports: String = code.split(';').filter(|s| s.contains("use hadal::")).collect();
                for macro_name in ["println", "print", "eprintln", "eprint"] {
                    let call = format!("{macro_name}!(");
                    let called = code.match_indices(&call).any(|(i, _)| !code[..i].ends_with(char::is_alphanumeric));
                    let imported = imports.split(|c: char| !c.is_alphanumeric()).any(|w| w == macro_name);
                    assert!(!called || imported, "{}: std's {macro_name}!; use hadal::{macro_name}", path.display());
                    programs += usize::from(called);
                }
            }
        }
    }
    assert!(programs > 20, "{programs}");
}

fn records() -> Vec<Value> {
    page::parse_records(&fs::read_to_string(docs().join("results.jsonl")).unwrap()).unwrap()
}

/// Other engines end with a loss of .346-.354, a training accuracy of .871-.873 and a best test accuracy of .853-.866.
#[test]
fn the_recorded_dropout_runs_end_where_other_engines_do() {
    let records = records();
    for row in ["scratch", "concise"] {
        let of = |name: &str, epoch: Option<u64>| -> Vec<(u64, f64)> {
            let dropout =
                records.iter().filter(|r| text(r, "chapter") == "dropout" && text(r, "row") == row && r["quick"] == false);
            let named = dropout.filter(|r| text(r, "name") == name && epoch.is_none_or(|e| r["epoch"] == e));
            named.map(|r| (r["seed"].as_u64().unwrap(), r["value"].as_f64().unwrap())).collect()
        };
        let (losses, accuracies, tests) = (of("loss", Some(10)), of("train acc", Some(10)), of("test acc", None));
        assert!(losses.len() >= 3 && accuracies.len() >= 3, "{row}: {losses:?}");
        assert!(losses.iter().all(|(_, l)| (0.335..=0.365).contains(l)), "{row}: {losses:?}");
        assert!(accuracies.iter().all(|(_, a)| (0.865..=0.880).contains(a)), "{row}: {accuracies:?}");
        for (seed, _) in losses {
            let best = tests.iter().filter(|t| t.0 == seed).map(|t| t.1).fold(0.0, f64::max);
            assert!(best >= 0.855, "{row}, seed {seed}: {best}");
        }
    }
}

#[test]
fn the_page_is_what_the_records_say() {
    let (docs, records) = (docs(), records());
    let stored = fs::read_to_string(docs.join("results.md")).unwrap();
    assert!(stored == page::render(&said(), &records), "make it again: cargo run --release --example results -- --render");
}
