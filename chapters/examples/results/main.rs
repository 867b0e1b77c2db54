//! Runs the book's chapters that have tables, and makes docs/results.md from what they bring.
//!
//!     cargo run --release --example results                    # all that this machine can do; then the page
//!     cargo run --release --example results -- --only dropout --seeds 3
//!     cargo run --release --example results -- --render        # the page alone
//!
//! With a GPU all tables are run there, else those that a CPU finishes in minutes (`--context cpu` and `--all` choose otherwise).
//! Runs that docs/results.jsonl already has of the same chapter on the same device are replaced.

mod book;
mod page;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use book::{chapters, list, text};
use clap::Parser;
use hadal::{eprintln, println};
use serde_json::Value;

#[derive(Parser)]
struct Options {
    /// cpu, gpu, gpu:1, … or auto: gpu(0) if it can be used, else the CPU
    #[arg(long, default_value = "auto")]
    context: String,
    /// Runs of each chapter, with the seeds 0, 1, …
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Only these chapters
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// On a CPU, also the tables that take hours there
    #[arg(long)]
    all: bool,
    /// Runs nothing: makes the page from the runs so far
    #[arg(long)]
    render: bool,
    /// Folder of book.json, results.jsonl and results.md
    #[arg(long, default_value = "docs")]
    docs: PathBuf,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let said: Value = serde_json::from_str(book::BOOK)?;
    let file = options.docs.join("results.jsonl");
    if !options.render {
        let ctx: hadal::Context = options.context.parse()?;
        let (context, device) = (ctx.to_string(), ctx.device_name()?);
        let folder = programs()?;
        for chapter in chapters(&said) {
            let tables: Vec<&Value> = list(&said, "tables").iter().filter(|t| text(t, "chapter") == chapter).collect();
            let wanted = if options.only.is_empty() { !tables.is_empty() } else { options.only.iter().any(|o| o == chapter) };
            let too_long = !ctx.is_gpu() && !options.all && options.only.is_empty() && tables.iter().all(|t| t["gpu"] == true);
            if !wanted || too_long {
                continue;
            }
            let fresh = options.docs.join("results.jsonl.run");
            remove(&fresh)?;
            for seed in 0..options.seeds {
                println!("== {chapter}, seed {seed}, {context}");
                let status = Command::new(folder.join(chapter))
                    .args(["--context", &options.context, "--seed", &seed.to_string(), "--record"])
                    .arg(&fresh)
                    .status()
                    .map_err(|e| format!("{}: {e}", folder.join(chapter).display()))?;
                if !status.success() {
                    return Err(format!("{chapter} ended with {status}").into());
                }
            }
            // What was there of other chapters and devices stays, also when a later chapter fails.
            let same = |r: &Value| text(r, "chapter") == chapter && text(r, "context") == context && text(r, "device") == device;
            let mut records = page::parse_records(&read(&file)?)?;
            records.retain(|r| !same(r));
            records.extend(page::parse_records(&read(&fresh)?)?);
            let lines: String = records.iter().map(|r| format!("{r}\n")).collect();
            hadal::files::write(&file, lines.as_bytes())?;
            remove(&fresh)?;
        }
    }
    let records = page::parse_records(&read(&file)?)?;
    let page = options.docs.join("results.md");
    hadal::files::write(&page, page::render(&said, &records).as_bytes())?;
    println!("{}", page.display());
    Ok(())
}

/// The folder of the chapters' programs: this one's own. Under cargo they are built first.
fn programs() -> Result<PathBuf, Failure> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        let status = Command::new(cargo).args(["build", "--release", "--examples"]).status()?;
        if !status.success() {
            return Err("the chapters do not build".into());
        }
    }
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new(".")).to_owned())
}

/// A file's text; nothing where there is no file yet.
fn read(path: &Path) -> Result<String, Failure> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("{}: {e}", path.display()).into()),
        text => Ok(text.unwrap_or_default()),
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("{}: {e}", path.display()).into()),
        _ => Ok(()),
    }
}
