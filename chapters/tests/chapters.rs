//! The book's chapters as tests: every program in `chapters/examples/` runs in its quick mode, prints what
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

#[path = "../examples/results/book.rs"]
mod book;
#[path = "../../tests/common/mod.rs"]
mod common;

use book::{list, text};

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

fn said() -> Value {
    serde_json::from_str(book::BOOK).expect("docs/book.json")
}

/// A chapter's quick run on every context.
fn check(chapter: &str) {
    let on_cpu = run(chapter, &hadal::cpu());
    for item in list(&said(), "items").iter().filter(|i| text(i, "chapter") == chapter) {
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
    let device = if ctx.is_gpu() { "gpu" } else { "cpu" };
    let out = std::env::temp_dir().join(format!("hadal-chapters-{}", std::process::id())).join(format!("{chapter}-{device}"));
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
    fs::remove_dir_all(&out).unwrap();
    // The last one takes the folder of all away.
    let _ = fs::remove_dir(out.parent().unwrap());
    text.replace(&out.display().to_string(), "").replace(&ctx.to_string(), "cpu(0)")
}

/// The folder of the examples' programs, built from the present sources when cargo runs the tests; in a bundle as they came along.
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
fn the_chapters_are_those_of_the_page() {
    let set = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(set(CHAPTERS), set(&book::chapters(&said())));
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
