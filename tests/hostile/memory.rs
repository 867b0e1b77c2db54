//! An allocator that counts what a thread holds, so that a test can bound what a call takes.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

thread_local! {
    /// Bytes that this thread has taken and not given back; less than none where it frees what others took.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most that it has held.
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(more: isize) {
    // Fails only while the thread ends.
    let _ = HELD.try_with(|held| {
        held.set(held.get().wrapping_add(more));
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

/// What a single allocation of any thread may take.
static CAP: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The largest that any thread has asked for and got.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// From now on a larger allocation fails, in all threads, as it does where there is no memory.
pub fn cap(bytes: usize) {
    CAP.store(bytes, Ordering::Relaxed);
}

/// Begins to look for the largest allocation.
pub fn start() {
    LARGEST.store(0, Ordering::Relaxed);
}

/// The largest allocation of any thread since [`start`].
pub fn largest() -> usize {
    LARGEST.load(Ordering::Relaxed)
}

/// True where the cap allows it.
fn granted(bytes: usize) -> bool {
    let granted = bytes <= CAP.load(Ordering::Relaxed);
    if granted && bytes > LARGEST.load(Ordering::Relaxed) {
        LARGEST.fetch_max(bytes, Ordering::Relaxed);
    }
    granted
}

/// Counts a request; one that fails was asked for, but is not held.
fn taken(size: usize, at: *mut u8) -> *mut u8 {
    count(size as isize);
    if at.is_null() {
        count(-(size as isize));
    }
    at
}

// SAFETY: every call goes to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        taken(layout.size(), if granted(layout.size()) { unsafe { System.alloc(layout) } } else { ptr::null_mut() })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        taken(layout.size(), if granted(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { ptr::null_mut() })
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new lie side by side while the content is copied.
        // SAFETY: the caller's contract is the same.
        let new = taken(size, if granted(size) { unsafe { System.realloc(at, layout, size) } } else { ptr::null_mut() });
        if !new.is_null() {
            count(-(layout.size() as isize));
        }
        new
    }
}

/// What `f` gives, and the most bytes that this thread held meanwhile, beyond what it held before.
pub fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let out = f();
    (out, usize::try_from(MOST.get() - before).unwrap_or(0))
}

#[test]
fn the_peak_is_what_was_held_at_once() {
    let (_, most) = peak(|| {
        drop(std::hint::black_box(vec![0u8; 5000]));
        std::hint::black_box(vec![0u8; 3000])
    });
    assert!((5000..6000).contains(&most), "{most}");
    let (got, most) = peak(|| Vec::<u8>::new().try_reserve_exact(1 << 60));
    assert!(got.is_err() && most == 1 << 60, "what is asked for counts, had or not");
}
