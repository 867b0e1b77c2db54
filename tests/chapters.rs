//! The book's chapters as tests: every program in `examples/` that has a `book::Page` runs in its quick mode, prints what
//! docs/book.json says, and prints on gpu(0) what it prints on cpu(0).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use hadal::Context;
use serde_json::Value;

#[path = "common/mod.rs"]
mod common;
#[path = "../examples/results/page.rs"]
mod page;

use page::{list, text};

/// A test for each chapter, so that they run side by side and fail by name.
macro_rules! chapters {
    ($($name:ident)*) => {
        const CHAPTERS: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { check(stringify!($name)); })*
    };
}

chapters! {
    naive_bayes linear_regression weight_decay
    dropout dropout_exercises lars parameters
    exploding_gradients vanishing_gradients symmetry initialization
    convolution padding_and_stride channels pooling
    lenet alexnet vgg nin googlenet resnet densenet
}

fn book() -> Value {
    serde_json::from_str(page::BOOK).expect("docs/book.json")
}

/// A chapter's quick run on every context.
fn check(chapter: &str) {
    let on_cpu = run(chapter, &hadal::cpu());
    for item in list(&book(), "items").iter().filter(|i| text(i, "chapter") == chapter) {
        for line in list(item, "prints").iter().filter_map(Value::as_str) {
            assert!(on_cpu.contains(line), "{chapter} does not print {line:?}:\n{on_cpu}");
        }
    }
    if let Some(gpu) = common::gpu() {
        same_figures(chapter, &on_cpu, &run(chapter, &gpu));
    }
}

/// What the chapter prints. A failure of its own fails the test with its message.
fn run(chapter: &str, ctx: &Context) -> String {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{chapter}-{}", if ctx.is_gpu() { "gpu" } else { "cpu" }));
    fs::create_dir_all(&out).unwrap();
    let program = programs().join(chapter);
    let run = Command::new(&program)
        .args(["--quick", "--context", &ctx.to_string(), "--out"])
        .arg(&out)
        .arg("--record")
        .arg(out.join("records.jsonl"))
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let (text, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{chapter} on {ctx}: {}\n{text}{errors}", run.status);
    // The drawings that it names are there, and are pictures.
    for path in text.lines().filter_map(|l| l.strip_prefix("drawn: ")) {
        let picture = fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(picture.contains("<svg") && picture.trim_end().ends_with("</svg>"), "{path} is no picture");
    }
    text.replace(&out.display().to_string(), "").replace(&ctx.to_string(), "cpu(0)")
}

/// The folder of the examples' programs, built from the present sources when cargo runs the tests; else as they came along.
fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let folder = own.parent().unwrap();
        if let Some(cargo) = std::env::var_os("CARGO") {
            let status = Command::new(cargo).args(["build", "--quiet", "--examples"]).args(RELEASE).status().unwrap();
            assert!(status.success(), "the chapters do not build");
            return folder.parent().unwrap().join("examples");
        }
        folder.parent().unwrap().join("bin")
    })
}

const RELEASE: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };

/// A line as words and numbers.
#[derive(Debug, PartialEq)]
enum Piece {
    Word(String),
    /// The value, and what one step of its last printed digit is.
    Number(f64, f64),
}

fn pieces(line: &str) -> Vec<Piece> {
    let word_end = |c: char| c.is_whitespace() || "[](),:|".contains(c);
    line.split_inclusive(word_end)
        .flat_map(|w| {
            let body = w.trim_end_matches(word_end);
            [body.to_owned(), w[body.len()..].trim().to_owned()]
        })
        .filter(|w| !w.is_empty())
        .map(|w| match w.parse::<f64>() {
            Ok(v) if v.is_finite() => {
                let (mantissa, exponent) = w.split_once(['e', 'E']).unwrap_or((&w, "0"));
                let decimals = mantissa.split_once('.').map_or(0, |(_, d)| d.len()) as i32;
                Piece::Number(v, 10f64.powi(exponent.parse::<i32>().unwrap_or(0) - decimals))
            }
            _ => Piece::Word(w),
        })
        .collect()
}

/// Times differ between any two runs.
fn without_times(line: &str) -> &str {
    line.split(", time ").next().unwrap_or(line)
}

/// Errs where the two say different things: other words, or numbers apart by more than the rounding of what they print.
fn same_figures(chapter: &str, cpu: &str, gpu: &str) {
    let (a, b): (Vec<&str>, Vec<&str>) = (cpu.lines().collect(), gpu.lines().collect());
    assert_eq!(a.len(), b.len(), "{chapter}: other lines\n{cpu}\n---\n{gpu}");
    // Batch-norm over a handful of values multiplies a rounding within a step (tests/training.rs measures it).
    let slack = if ["resnet", "densenet"].contains(&chapter) { 3e-2 } else { 2e-3 };
    for (a, b) in a.iter().zip(&b) {
        let (x, y) = (pieces(without_times(a)), pieces(without_times(b)));
        let close = |i: usize| match (&x[i], &y[i]) {
            // A few of the hundreds of images may fall on the other side.
            (Piece::Number(v, _), Piece::Number(w, _)) if i > 0 && x[i - 1] == Piece::Word("acc".into()) => (v - w).abs() <= 0.02,
            (Piece::Number(v, step), Piece::Number(w, _)) => (v - w).abs() <= 1.01 * step + slack * v.abs().max(w.abs()),
            (p, q) => p == q,
        };
        assert!(x.len() == y.len() && (0..x.len()).all(close), "{chapter}: cpu(0) and gpu(0) differ:\n{a}\n{b}");
    }
}

#[test]
fn the_comparison_sees_a_difference() {
    let same = |a: &str, b: &str| std::panic::catch_unwind(|| same_figures("", a, b)).is_ok();
    assert!(same("loss 0.1234, time 3.1 sec", "loss 0.1235, time 8 sec"));
    assert!(same("[[ 1. 2.e+20]", "[[1. 2.e+20]"));
    assert!(same("test acc 0.512, loss 1", "test acc 0.520, loss 1"));
    assert!(!same("test acc 0.512", "test acc 0.600"));
    assert!(!same("loss 0.1234", "loss 0.1250"));
    assert!(!same("acc 0.5", "acc nan"));
    assert!(!same("a 1", "b 1"));
    assert!(!same("a\nb", "a"));
}

/// The names of the files that have a chapter in them.
fn chapters_in_sources() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "rs"));
    files
        .filter(|p| fs::read_to_string(p).unwrap().contains("mod book;"))
        .map(|p| p.file_stem().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn every_chapter_is_tested_and_has_its_place_on_the_page() {
    let set = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(set(CHAPTERS), chapters_in_sources());
    let book = book();
    assert_eq!(set(&page::chapters(&book)), chapters_in_sources());
    for item in list(&book, "items") {
        let shown = list(item, "prints").len() + list(item, "tests").len();
        assert!(shown > 0, "nothing shows {:?}", text(item, "item"));
    }
}

#[test]
fn the_tests_that_the_page_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for test in list(&book(), "items").iter().flat_map(|i| list(i, "tests")).filter_map(Value::as_str) {
        let (file, name) = test.split_once("::").unwrap_or((test, ""));
        let source = fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(source.contains(&format!("fn {name}(")), "{file} has no test {name}");
    }
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
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
    assert!(stored == page::render(&book(), &records), "make it again: cargo run --release --example results -- --render");
}
