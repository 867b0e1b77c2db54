//! Calls of the whole public API with shapes, attributes, dtypes and values as no user of good will would give them.
//!
//! A call returns, with a value or an error. It must not panic, abort, hang, or take memory out of proportion. So the cases run in
//! processes of their own, in which no allocation above [`CAP`] succeeds: memory that cannot be had is an error, too, and a
//! code path that does not ask for it in a way that can fail ends the process. A process that ends, or stands still, is a failure
//! of the case that it was at; the next one begins behind it.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Seek, SeekFrom, Write},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use hadal::{Error, autograd};

use crate::{
    calls_api::Caller,
    cases::{self, Rng},
    memory,
};

/// The largest allocation that succeeds where calls are tried.
const CAP: usize = 48 << 20;
/// What a case may take at most. The machine may be busy: the usual case takes less than a millisecond.
const LIMIT: Duration = Duration::from_secs(20);
/// What may be taken whatever the call: buffers of a fixed size, and the blocks of a matrix product, which follow from the caches' sizes.
const FIXED: usize = 4 << 20;
/// Cases of one process.
const BATCH: u64 = 20_000;
/// Tells a process which cases to run: `first end folder`.
const JOB: &str = "HADAL_HOSTILE_JOB";

/// How a case went wrong.
struct Failure {
    case: u64,
    what: String,
}

#[test]
fn no_call_panics_aborts_hangs_or_takes_too_much() {
    let numbers = cases::numbers(4_000);
    let folder = env::temp_dir().join(format!("hadal-calls-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut failures = Vec::new();
    let mut first = numbers.start;
    while first < numbers.end && failures.len() < 200 {
        let end = numbers.end.min(first + BATCH);
        first = run_process(&folder, first, end, &mut failures);
        if numbers.end - numbers.start > BATCH {
            eprintln!("calls: {} of {} cases, {} failures", first - numbers.start, numbers.end - numbers.start, failures.len());
        }
    }
    let _ = fs::remove_dir_all(&folder);
    let mut kinds: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for f in &failures {
        kinds.entry(&f.what).or_insert((0, f.case)).0 += 1;
    }
    let list: Vec<String> = kinds.iter().map(|(what, (n, case))| format!("case {case} ({n} of its kind): {what}")).collect();
    assert!(
        list.is_empty(),
        "{} failures; HADAL_HOSTILE_FIRST=CASE HADAL_HOSTILE_CASES=1 runs one:\n{}",
        failures.len(),
        list.join("\n")
    );
}

/// Runs cases in a process of their own; returns the first that it has not run.
fn run_process(folder: &Path, first: u64, end: u64, failures: &mut Vec<Failure>) -> u64 {
    let (at, found) = (folder.join("at"), folder.join("found"));
    fs::write(&at, first.to_le_bytes()).unwrap();
    fs::write(&found, "").unwrap();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "calls::in_a_process_of_its_own", "--ignored", "--nocapture", "--test-threads=1"])
        .env(JOB, format!("{first} {end} {}", folder.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::from(fs::File::create(folder.join("stderr")).unwrap()))
        .spawn()
        .unwrap();
    let why = watch(&mut child, &at);
    for line in fs::read_to_string(&found).unwrap().lines() {
        let (case, what) = line.split_once('\t').unwrap();
        failures.push(Failure { case: case.parse().unwrap(), what: what.to_owned() });
    }
    let Some(why) = why else { return end };
    let case = position(&at).unwrap_or(first);
    let said = fs::read_to_string(folder.join("stderr")).unwrap_or_default();
    let last = said.lines().last().unwrap_or_default();
    failures.push(Failure { case, what: format!("{why} {last}") });
    case + 1
}

fn position(at: &Path) -> Option<u64> {
    Some(u64::from_le_bytes(fs::read(at).ok()?.try_into().ok()?))
}

/// Waits for the process; `None` when it ended well.
fn watch(child: &mut Child, at: &Path) -> Option<String> {
    let (mut case, mut since) = (None, Instant::now());
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (!status.success()).then(|| format!("the process ended with {status}:"));
        }
        let now = position(at);
        if now != case {
            (case, since) = (now, Instant::now());
        } else if since.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            return Some(format!("still running after {LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

static PLACE: Mutex<String> = Mutex::new(String::new());

#[test]
#[ignore = "a part of the test above, which runs it in a process of its own"]
fn in_a_process_of_its_own() {
    let job = env::var(JOB).expect("the test above sets it");
    let mut parts = job.splitn(3, ' ');
    let mut number = || parts.next().unwrap().parse::<u64>().unwrap();
    let (first, end) = (number(), number());
    let folder = PathBuf::from(parts.next().unwrap());
    let mut at = fs::OpenOptions::new().write(true).open(folder.join("at")).unwrap();
    let mut found = fs::OpenOptions::new().append(true).open(folder.join("found")).unwrap();
    panic::set_hook(Box::new(|info| {
        let text = info.payload();
        let text = text.downcast_ref::<String>().map(String::as_str).or(text.downcast_ref::<&str>().copied());
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        // Numbers apart, so that cases of one kind are told as one.
        let text: String = text.unwrap_or_default().chars().filter(|c| !c.is_ascii_digit()).take(120).collect();
        *PLACE.lock().unwrap() = format!("panic at {place}: {}", text.replace(['\n', '\t'], " "));
    }));
    memory::cap(CAP);
    for case in first..end {
        at.seek(SeekFrom::Start(0)).unwrap();
        at.write_all(&case.to_le_bytes()).unwrap();
        if let Err(what) = one(case) {
            writeln!(found, "{case}\t{what}").unwrap();
        }
    }
    memory::cap(usize::MAX);
}

/// One case. Its text is what the failures of its kind share.
fn one(case: u64) -> Result<(), String> {
    hadal::random::seed(case);
    let mut caller = Caller::new(Rng::new(case));
    memory::start();
    let verbose = env::var_os("HADAL_HOSTILE_VERBOSE").is_some();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let recorded = caller.rng.one_in(2);
        let run = |c: &mut Caller| c.call();
        if recorded { autograd::record(|| run(&mut caller)) } else { run(&mut caller) }
    }));
    let largest = memory::largest();
    if verbose {
        eprintln!("case {case}: {} {outcome:?}, largest {largest}", caller.name);
    }
    let result = match outcome {
        Ok(result) => result,
        Err(_) => return Err(format!("{}: {}", caller.name, PLACE.lock().unwrap())),
    };
    // What has no memory asked for its result; everything else is in proportion to what is read and written.
    if !matches!(result, Err(Error::OutOfMemory { .. })) && !refused_for_memory(&result) && largest > 100 * caller.bytes + FIXED {
        return Err(format!("{}: an allocation out of proportion", caller.name));
    }
    if let Err(e) = &result {
        let _ = (e.to_string(), format!("{e:?}"));
    }
    Ok(())
}

/// A layer's error, too, may be one of memory.
fn refused_for_memory(result: &hadal::Result<()>) -> bool {
    let mut e = result.as_ref().err();
    while let Some(Error::Layer { source, .. }) = e {
        e = Some(source);
    }
    matches!(e, Some(Error::OutOfMemory { .. }))
}

#[test]
fn a_case_is_the_same_in_every_run() {
    let name = |case| {
        let mut c = Caller::new(Rng::new(case));
        let _ = c.call();
        c.name
    };
    for case in [1, 2, 3] {
        assert_eq!(name(case), name(case));
    }
}
