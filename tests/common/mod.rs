//! Shared by all test programs: the contexts to run on, and the count of what ran on a GPU.
#![allow(dead_code)]

use std::{env, fs::OpenOptions, io::Write, thread};

use hadal::{Context, cpu};

/// `gpu(0)` if there is one. With `HADAL_REQUIRE_GPU=1` its absence is a failure, else it is said once.
///
/// Each call is one check on a GPU: a line with the program's and the test's name in the file `$HADAL_GPU_COUNT`, if that is
/// set. libtest has no place for a closing word of a program; `scripts/gpu_checks` sums the file up for all of them.
pub fn gpu() -> Option<Context> {
    match hadal::gpu(0) {
        Ok(ctx) => {
            count();
            Some(ctx)
        }
        Err(e) if env::var("HADAL_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("HADAL_REQUIRE_GPU is set: {e}"),
        Err(e) => {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| say(&format!("GPU checks are NOT run: {e}")));
            None
        }
    }
}

/// A line that libtest shows also when the test passes: it keeps back what `eprintln!` writes, and a skip would read as a pass.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Notes a check on a GPU.
fn count() {
    let Some(path) = env::var_os("HADAL_GPU_COUNT") else { return };
    let program = env::current_exe().ok().and_then(|p| Some(p.file_stem()?.to_string_lossy().into_owned()));
    // libtest names the thread after the test; with one thread it runs on the main one.
    let line = format!("{} {}\n", program.unwrap_or_default(), thread::current().name().unwrap_or("?"));
    // One write in append mode: lines of several threads and programs do not mix.
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut f| f.write_all(line.as_bytes())).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// The CPU, and the GPU if there is one.
pub fn contexts() -> Vec<Context> {
    std::iter::once(cpu()).chain(gpu()).collect()
}
