//! Numbered cases: how many, their random numbers, and a watch over their time.

use std::{
    collections::HashMap,
    env,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    sync::{Mutex, Once},
    thread,
    time::{Duration, Instant},
};

/// What one case may take at most; it is a hang else.
const LIMIT: Duration = Duration::from_secs(30);

/// The cases to run: `usual`, unless `HADAL_HOSTILE_CASES` and `HADAL_HOSTILE_FIRST` say otherwise.
pub fn numbers(usual: u64) -> Range<u64> {
    let number = |name: &str, usual: u64| match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => usual,
    };
    let first = number("HADAL_HOSTILE_FIRST", 0);
    first..first + number("HADAL_HOSTILE_CASES", usual)
}

/// Runs `case` for each number. A panic fails the test with the case's number; one that takes too long ends the program.
pub fn run(test: &'static str, usual: u64, case: impl Fn(&mut Rng)) {
    for number in numbers(usual) {
        let watched = Watched::new(test, number);
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&mut Rng::new(number))));
        drop(watched);
        if let Err(panic) = outcome {
            let why = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            panic!("{test}, case {number}: {}", why.unwrap_or("a panic"));
        }
    }
}

/// A case that runs, for the thread that watches the time.
pub struct Watched;

/// Since when each thread runs which case of which test.
type Running = HashMap<thread::ThreadId, (Instant, &'static str, u64)>;

static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

impl Watched {
    pub fn new(test: &'static str, number: u64) -> Self {
        static WATCH: Once = Once::new();
        WATCH.call_once(|| drop(thread::spawn(watch)));
        let mut running = RUNNING.lock().unwrap();
        running.get_or_insert_default().insert(thread::current().id(), (Instant::now(), test, number));
        Watched
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(running) = RUNNING.lock().unwrap().as_mut() {
            running.remove(&thread::current().id());
        }
    }
}

fn watch() {
    loop {
        thread::sleep(Duration::from_secs(1));
        let running = RUNNING.lock().unwrap();
        if let Some((_, test, number)) = running.iter().flatten().map(|(_, r)| r).find(|r| r.0.elapsed() > LIMIT) {
            // A thread cannot be ended, so the program is.
            eprintln!("{test}, case {number}: still running after {LIMIT:?}");
            process::exit(1);
        }
    }
}

/// SplitMix64: small, and the same everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// One of these.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}
