//! Batches prepared ahead of time on threads, delivered in order.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::cpu::parallel;
use crate::error::{Error, Result};
use crate::random::{Draw, Streams};

/// An iterator over `work(i)` for each `i` of a range, in order, with the next few computed ahead on threads.
///
/// An error of `work` is that item's value, and a panic in it becomes [`Error::Invalid`]; the items after it are
/// delivered all the same. Dropping the iterator waits for the items being computed (one for each thread at most), and
/// starts no other.
///
/// Random numbers that `work(i)` draws are those of stream `i` of one draw, which [`Prefetch::new`] takes from the calling thread
/// (see [`Streams`]): they depend on the seed and on the item, and are the same for any number of workers. The next
/// `Prefetch`, of the next epoch say, has other ones.
///
/// ```
/// # use hadal::{Tensor, cpu, data::Prefetch, random};
/// let noise = |workers| {
///     random::seed(7);
///     let items = Prefetch::new(0..8, workers, 8, |_| Tensor::uniform(0.0, 1.0, &[2], &cpu())?.to_vec())?;
///     items.collect::<hadal::Result<Vec<_>>>()
/// };
/// assert_eq!(noise(0)?, noise(4)?);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// ```
/// # use hadal::data::Prefetch;
/// let squares = Prefetch::new(0..5, 2, 4, |i| Ok(i * i))?;
/// assert_eq!(squares.collect::<hadal::Result<Vec<usize>>>()?, [0, 1, 4, 9, 16]);
/// # Ok::<(), hadal::Error>(())
/// ```
#[doc(alias = "num_workers")]
pub struct Prefetch<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    streams: Streams,
    work: Box<dyn Fn(usize) -> Result<T> + Send + Sync>,
    depth: usize,
    state: Mutex<State<T>>,
    /// Told when room appears or the iterator is dropped.
    room: Condvar,
    /// Told when an item is ready.
    ready: Condvar,
}

struct State<T> {
    /// The item that the iterator gives next; `slots[0]` is its place.
    deliver: usize,
    /// The item that the next free thread takes.
    take: usize,
    end: usize,
    /// Items `deliver..take`, each `None` until it is ready.
    slots: VecDeque<Option<Result<T>>>,
    stop: bool,
}

/// Threads that are started at most: more of them than any machine has processors would only take memory.
const MOST: usize = 512;

impl<T: Send + 'static> Prefetch<T> {
    /// Starts up to `workers` threads that compute up to `depth` items ahead of the iterator.
    ///
    /// With 0 workers there is no thread, and each item is computed when it is asked for. The queue holds at least one
    /// item for each thread.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where no thread can be started.
    pub fn new(
        items: Range<usize>,
        workers: usize,
        depth: usize,
        work: impl Fn(usize) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::drawing(Streams::next(), items, workers, depth, work)
    }

    /// [`Prefetch::new`] for work that draws no random numbers, and so takes none from the thread.
    pub(super) fn without_draws(
        items: Range<usize>,
        workers: usize,
        depth: usize,
        work: impl Fn(usize) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::drawing(Streams::of(Draw { seed: 0, number: 0 }), items, workers, depth, work)
    }

    fn drawing(
        streams: Streams,
        items: Range<usize>,
        workers: usize,
        depth: usize,
        work: impl Fn(usize) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let workers = workers.min(items.len()).min(MOST);
        let state = State {
            deliver: items.start,
            take: items.start,
            end: items.end.max(items.start),
            slots: VecDeque::new(),
            stop: false,
        };
        let shared = Arc::new(Shared {
            streams,
            work: Box::new(work),
            depth: depth.max(workers),
            state: Mutex::new(state),
            room: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut prefetch = Self { shared, threads: Vec::new() };
        for i in 0..workers {
            let shared = Arc::clone(&prefetch.shared);
            match thread::Builder::new().name(format!("hadal-data-{i}")).spawn(move || shared.run()) {
                Ok(thread) => prefetch.threads.push(thread),
                // Fewer threads than asked for do the same work.
                Err(_) if i > 0 => break,
                Err(e) => return Err(invalid(format!("no thread could be started: {e}"))),
            }
        }
        Ok(prefetch)
    }
}

impl<T> Shared<T> {
    /// No code of others runs under the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compute(&self, i: usize) -> Result<T> {
        let work = || self.streams.with(i as u64, || (self.work)(i));
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
            Err(invalid(format!("preparing batch {i} panicked: {text}")))
        })
    }

    fn run(&self) {
        loop {
            let mut state = self.lock();
            while !state.stop && state.take < state.end && state.take - state.deliver >= self.depth {
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop || state.take >= state.end {
                return;
            }
            let i = state.take;
            state.take += 1;
            state.slots.push_back(None);
            drop(state);

            // A task of rayon's may wait for this item, so that none of rayon's threads is left to help with it.
            let item = parallel::alone(|| self.compute(i));

            let mut state = self.lock();
            let place = i - state.deliver; // the iterator never passes an item that isn't ready
            if let Some(slot) = state.slots.get_mut(place) {
                *slot = Some(item);
            }
            drop(state);
            self.ready.notify_one();
        }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let mut state = self.shared.lock();
        if state.deliver >= state.end {
            return None;
        }
        if self.threads.is_empty() {
            let i = state.deliver;
            state.deliver += 1;
            drop(state);
            return Some(self.shared.compute(i));
        }
        loop {
            if let Some(item) = state.slots.front_mut().and_then(Option::take) {
                state.slots.pop_front();
                state.deliver += 1;
                drop(state);
                self.shared.room.notify_one();
                return Some(item);
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let state = self.shared.lock();
        let left = state.end - state.deliver;
        (left, Some(left))
    }
}

impl<T> ExactSizeIterator for Prefetch<T> {}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl<T> fmt::Debug for Prefetch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetch").field("threads", &self.threads.len()).field("left", &self.len()).finish()
    }
}

fn invalid(reason: String) -> Error {
    Error::Invalid { op: "prefetch", reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    #[test]
    fn in_order_whatever_the_threads_do() {
        for workers in [0, 1, 2, 7, 100] {
            for depth in [0, 1, 3, 50] {
                let items = Prefetch::new(3..40, workers, depth, |i| {
                    thread::sleep(Duration::from_micros((i as u64 * 7919) % 300));
                    Ok(i)
                });
                let found: Result<Vec<usize>> = items.unwrap().collect();
                assert_eq!(found.unwrap(), (3..40).collect::<Vec<_>>(), "{workers} {depth}");
            }
        }
    }

    #[test]
    fn threads_work_at_the_same_time() {
        // Each item waits for its partner: with one thread this would never end.
        let gate = Arc::new(std::sync::Barrier::new(2));
        let items = Prefetch::new(0..20, 2, 2, move |i| {
            gate.wait();
            Ok(i)
        });
        assert_eq!(items.unwrap().count(), 20);
    }

    #[test]
    fn the_queue_is_bounded() {
        let started = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&started);
        let mut items = Prefetch::new(0..1000, 2, 5, move |i| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(i)
        })
        .unwrap();
        thread::sleep(Duration::from_millis(30));
        assert_eq!(started.load(Ordering::SeqCst), 5);
        assert_eq!(items.next().unwrap().unwrap(), 0);
        assert_eq!(items.len(), 999);
        thread::sleep(Duration::from_millis(30));
        assert_eq!(started.load(Ordering::SeqCst), 6);
    }

    #[test]
    fn errors_and_panics_are_items() {
        for workers in [0, 3] {
            let items = Prefetch::new(0..9, workers, 4, |i| match i {
                3 => Err(Error::Invalid { op: "test", reason: "three".into() }),
                5 => panic!("five is {i}"),
                7 => std::panic::panic_any(7),
                _ => Ok(i),
            });
            let found: Vec<String> = items.unwrap().map(|r| r.map_or_else(|e| e.to_string(), |i| i.to_string())).collect();
            let (five, seven) =
                ("prefetch: preparing batch 5 panicked: five is 5", "prefetch: preparing batch 7 panicked: no message");
            assert_eq!(found, ["0", "1", "2", "test: three", "4", five, "6", seven, "8"]);
        }
    }

    #[test]
    fn dropping_stops_promptly() {
        for taken in 0..4 {
            let started = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&started);
            let mut items = Prefetch::new(0..1_000_000, 4, 64, move |i| {
                count.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(5));
                Ok(i)
            })
            .unwrap();
            for _ in 0..taken {
                items.next();
            }
            let start = Instant::now();
            drop(items);
            assert!(start.elapsed() < Duration::from_secs(2));
            let after = started.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            assert_eq!(started.load(Ordering::SeqCst), after);
        }
    }

    #[test]
    fn random_numbers_are_the_items() {
        use crate::random;
        let draws = |workers, items: Range<usize>| -> Vec<Draw> {
            random::seed(3);
            let out = Prefetch::new(items, workers, 3, |_| Ok(random::next_draw())).unwrap().map(Result::unwrap).collect();
            assert_eq!(random::state(), (3, 1), "one draw of the thread's own");
            out
        };
        let all = draws(0, 0..8);
        assert_eq!(all.iter().map(|d| d.seed).collect::<std::collections::BTreeSet<_>>().len(), 8);
        for workers in 1..6 {
            assert_eq!(draws(workers, 0..8), all, "{workers}");
        }
        assert_eq!(draws(2, 5..8), all[5..], "by the item's number");
    }

    #[test]
    fn nothing_to_do() {
        let mut none = Prefetch::new(5..5, 3, 3, Ok).unwrap();
        assert!(none.next().is_none() && none.next().is_none());
        #[expect(clippy::reversed_empty_ranges)]
        let mut none = Prefetch::new(5..2, 3, 3, Ok).unwrap();
        assert_eq!(none.len(), 0);
        assert!(none.next().is_none());
    }
}
