//! How far a training run is: for a bar on a terminal, and for whoever asks to be told after each batch.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use crate::{Result, Trainer, data::Position};

/// How far a training run is, after a batch.
pub struct Progress<'a> {
    /// What updates the parameters; a checkpoint needs its states.
    pub trainer: &'a Trainer,
    /// The next batch: where a run resumed from a checkpoint made now goes on.
    pub at: Position,
    /// Batches that this run has trained with.
    pub batches: usize,
    /// Images that this run has trained with.
    pub images: usize,
    /// Images that it will train with in all.
    pub images_in_all: usize,
    /// Since it began.
    pub elapsed: Duration,
}

impl Progress<'_> {
    /// The time until the end, as long for each image as up to now.
    pub fn left(&self) -> Duration {
        let each = self.elapsed.as_secs_f64() / self.images.max(1) as f64;
        Duration::try_from_secs_f64(each * self.images_in_all.saturating_sub(self.images) as f64).unwrap_or(Duration::MAX)
    }
}

/// A duration as people say it: `40 s`, `12 min`, `3 h 20 min`.
pub fn spoken(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..100 => format!("{s} s"),
        100..6000 => format!("{} min", (s + 30) / 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// The clock of a run, and its bar on a terminal.
pub(super) struct Pace {
    began: Instant,
    pub(super) batches: usize,
    pub(super) images: usize,
    pub(super) images_in_all: usize,
    bar: Option<Bar>,
}

impl Pace {
    pub(super) fn new(images_in_all: usize, quiet: bool) -> Self {
        let bar = if quiet || !io::stderr().is_terminal() { None } else { Bar::new(images_in_all) };
        Pace { began: Instant::now(), batches: 0, images: 0, images_in_all, bar }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// After a batch. `loss` gives the epoch's mean loss so far; it waits for the device, so it is asked once a second at most, and only
    /// where somebody looks.
    pub(super) fn batch(&mut self, images: usize, epoch: usize, loss: impl FnOnce() -> Result<f64>) -> Result<()> {
        self.batches += 1;
        self.images += images;
        match &mut self.bar {
            Some(bar) if bar.is_due() => bar.show(self.images, epoch, loss()?, self.began.elapsed()),
            _ => {}
        }
        Ok(())
    }

    /// Takes the bar from the screen, so that a line can be printed.
    pub(super) fn hide(&self) {
        if let Some(bar) = &self.bar {
            bar.hide();
        }
    }
}

#[cfg(feature = "progress")]
struct Bar {
    bar: indicatif::ProgressBar,
    shown: Option<Instant>,
}

#[cfg(feature = "progress")]
impl Bar {
    fn new(images: usize) -> Option<Self> {
        let style = indicatif::ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} images").ok()?;
        let bar = indicatif::ProgressBar::new(images as u64).with_style(style);
        Some(Bar { bar, shown: None })
    }

    fn is_due(&self) -> bool {
        self.shown.is_none_or(|t| t.elapsed() >= Duration::from_secs(1))
    }

    fn show(&mut self, images: usize, epoch: usize, loss: f64, elapsed: Duration) {
        self.shown = Some(Instant::now());
        self.bar.set_message(line(images, self.bar.length().unwrap_or(0) as usize, epoch, loss, elapsed));
        self.bar.set_position(images as u64);
    }

    fn hide(&self) {
        self.bar.suspend(|| {});
    }
}

#[cfg(feature = "progress")]
impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A build without the feature `progress` has no bar.
#[cfg(not(feature = "progress"))]
enum Bar {}

#[cfg(not(feature = "progress"))]
impl Bar {
    fn new(_: usize) -> Option<Self> {
        None
    }
    fn is_due(&self) -> bool {
        match *self {}
    }
    fn show(&mut self, _: usize, _: usize, _: f64, _: Duration) {
        match *self {}
    }
    fn hide(&self) {
        match *self {}
    }
}

/// `epoch 2, loss 0.412, 225 images/s, 12 min left`; the time is that of the whole run.
#[cfg_attr(not(feature = "progress"), allow(dead_code))]
fn line(images: usize, in_all: usize, epoch: usize, loss: f64, elapsed: Duration) -> String {
    let rate = images as f64 / elapsed.as_secs_f64().max(1e-9);
    let left = Duration::try_from_secs_f64(in_all.saturating_sub(images) as f64 / rate.max(1e-9)).unwrap_or(Duration::MAX);
    format!("epoch {epoch}, loss {loss:.3}, {rate:.0} images/s, {} left", spoken(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_says_rate_loss_and_the_whole_runs_time() {
        let text = line(300, 3900, 2, 0.4321, Duration::from_secs(10));
        assert_eq!(text, "epoch 2, loss 0.432, 30 images/s, 2 min left");
        assert_eq!(spoken(Duration::from_secs(99)), "99 s");
        assert_eq!(spoken(Duration::from_secs(12_040)), "3 h 20 min");
        assert!(!line(0, 10, 1, f64::NAN, Duration::ZERO).is_empty());
    }
}
