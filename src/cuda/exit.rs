//! The end of the process: what is inside the compiler or the driver's loader then is waited for.
//!
//! `main` may return, or anything call `exit`, while threads compile what nobody reads any more. The libraries' destructors run in
//! `exit`, under the feet of those threads. A handler that was registered after the libraries were loaded runs before their destructors:
//! it lets nobody begin any more and waits for those who have.

use std::{
    ffi::c_int,
    sync::{Condvar, Mutex, Once, PoisonError},
};

// SAFETY: C's, which takes any function of this type.
unsafe extern "C" {
    safe fn atexit(f: extern "C" fn()) -> c_int;
}

struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    inside: Vec<usize>,
    closed: bool,
}

static GATE: Gate = Gate { state: Mutex::new(State { inside: Vec::new(), closed: false }), changed: Condvar::new() };

/// A number of the calling thread's own, also while it ends.
fn own() -> usize {
    thread_local! {
        static OWN: u8 = const { 0 };
    }
    OWN.with(|own| std::ptr::from_ref(own) as usize)
}

/// The calling thread is inside one of the libraries until this is dropped.
pub(super) struct Running(());

/// Enters a library that is loaded. Where the process ends, this does not return.
pub(super) fn running() -> Running {
    static REGISTERED: Once = Once::new();
    // No room for a handler: then the process ends as it would without.
    REGISTERED.call_once(|| _ = atexit(close));
    let mut state = GATE.state.lock().unwrap_or_else(PoisonError::into_inner);
    while state.closed {
        state = GATE.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    state.inside.push(own());
    Running(())
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = GATE.state.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own();
        if let Some(i) = state.inside.iter().position(|&id| id == own) {
            state.inside.swap_remove(i);
        }
        GATE.changed.notify_all();
    }
}

/// True once the process ends.
pub(super) fn is_closed() -> bool {
    GATE.state.lock().unwrap_or_else(PoisonError::into_inner).closed
}

extern "C" fn close() {
    let mut state = GATE.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.closed = true;
    // A signal's handler may call exit on a thread that is inside: that one would wait for itself.
    let own = own();
    while state.inside.iter().any(|&id| id != own) {
        state = GATE.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, exit},
        sync::{
            atomic::{AtomicBool, Ordering},
            mpsc,
        },
        thread,
        time::Duration,
    };

    use super::{atexit, running};

    static DONE: AtomicBool = AtomicBool::new(false);

    extern "C" fn report() {
        println!("done: {}", DONE.load(Ordering::SeqCst));
    }

    /// A process that ends while a thread compiles waits for that thread, and lets no other begin.
    #[test]
    fn the_end_waits_for_who_compiles() {
        const CHILD: &str = "HADAL_TEST_EXIT";
        if std::env::var_os(CHILD).is_none() {
            let exe = std::env::current_exe().expect("a test has a file");
            let test = "cuda::exit::tests::the_end_waits_for_who_compiles";
            let out = Command::new(exe).args([test, "--exact", "--nocapture"]).env(CHILD, "1").output().expect("it starts");
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.code() == Some(7) && said.contains("done: true"), "{:?} {said}", out.status);
            return;
        }
        // As the destructors of a library that was loaded before the first compilation: these run last.
        atexit(report);
        let (inside, is_inside) = mpsc::channel();
        thread::spawn(move || {
            let running = running();
            inside.send(()).expect("the test waits");
            thread::sleep(Duration::from_millis(300));
            DONE.store(true, Ordering::SeqCst);
            drop(running);
        });
        is_inside.recv().expect("the thread begins");
        exit(7);
    }
}
