//! The book's training loops: [`train_ch3`], [`train_ch5`], [`evaluate_accuracy`].
//!
//! Losses and accuracies add up on the device; the host waits for it once an epoch, when a line is printed.

mod progress;

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use progress::Pace;
pub use progress::{Progress, spoken};

use crate::{
    Array, Context, DType, Error, Result, Tensor, Trainer, autograd,
    data::{DataLoader, Position},
    loss::SoftmaxCrossEntropy,
    nn::{Block, Forward},
    optim,
};

/// What one epoch brought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochReport {
    /// Counted from 1.
    pub epoch: usize,
    /// Mean of the training losses that the epoch's batches gave, each with the weights before its step.
    pub loss: f64,
    /// Share of right predictions among those that were made in training, likewise.
    pub train_accuracy: f64,
    /// Accuracy on the test set after the epoch.
    pub test_accuracy: f64,
    /// Seconds, the test pass included.
    pub seconds: f64,
    /// Training samples seen.
    pub samples: usize,
}

impl fmt::Display for EpochReport {
    /// `epoch 1, loss 0.4950, train acc 0.826, test acc 0.875, time 61.4 sec`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EpochReport { epoch, loss, train_accuracy, test_accuracy, seconds, .. } = self;
        write!(
            f,
            "epoch {epoch}, loss {loss:.4}, train acc {train_accuracy:.3}, test acc {test_accuracy:.3}, time {seconds:.1} sec"
        )
    }
}

/// A mean over what was seen: the sum on the device in double precision, and the host's count of what went into it.
struct Mean {
    sum: Array,
    count: usize,
}

impl Mean {
    fn new(ctx: &Context) -> Result<Self> {
        Ok(Mean { sum: Array::zeros(&[], DType::F64, ctx)?, count: 0 })
    }

    /// Adds the elements of `x`, which stand for `count` things.
    fn add(&mut self, x: &Tensor, count: usize) -> Result<()> {
        self.sum.add_assign(&x.detach().cast(DType::F64)?.sum(&[])?.array())?;
        self.count += count;
        Ok(())
    }

    /// Waits for the device; NaN where nothing was seen.
    fn read(&self) -> Result<f64> {
        Ok(self.sum.item()? / self.count as f64)
    }
}

/// How many predictions are right, as a tensor on the device: Σ [argmax logits = label].
///
/// Of logits (N, …, C) it takes what [`SoftmaxCrossEntropy`] takes: class numbers (N, …) or (N, …, 1), or distributions (N, …, C),
/// whose largest element is the label. Nothing is broadcast.
///
/// ```
/// use hadal::{Tensor, cpu, train::correct};
/// let logits = Tensor::from_vec(vec![0f32, 1., 2., 0., 0., 3.], &[3, 2], &cpu())?;
/// let labels = Tensor::from_vec(vec![1i64, 0, 0], &[3, 1], &cpu())?;
/// assert_eq!(correct(&logits, &labels)?.item()?, 2.0);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] for labels of another shape.
pub fn correct(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(score(logits, labels)?.0)
}

/// [`correct`], and how many predictions there were.
fn score(logits: &Tensor, labels: &Tensor) -> Result<(Tensor, usize)> {
    let (shape, predicted) = (logits.shape(), logits.detach().argmax(-1)?);
    let one = predicted.shape();
    let labels = match labels.detach() {
        labels if labels.shape() == one || labels.shape() == [&one[..], &[1]].concat() => {
            Tensor::new(labels.array().reshape(&one)?)
        }
        labels if labels.shape() == shape => labels.argmax(-1)?,
        labels => {
            let reason = "labels have the logits' shape without the last axis, that of the classes, or with 1 there, or the whole \
                          of it as distributions";
            return Err(Error::shape("correct", reason, &[&shape, &labels.shape()]));
        }
    };
    // A label of 1.5 is no class, so floats are not rounded to one.
    let dtype = if labels.dtype().is_float() { DType::F64 } else { DType::I64 };
    let right = predicted.cast(dtype)?.eq(&labels.cast(dtype)?)?;
    Ok((right.cast(DType::F64)?.sum(&[])?, predicted.size()))
}

/// The share of right predictions over an epoch of `data`, with running statistics and without dropout.
///
/// It is the share of the predictions that were made: samples which the loader leaves out do not count. NaN where it leaves out all.
///
/// # Errors
/// Those of the forward pass, of [`correct`] and of reading the data.
pub fn evaluate_accuracy(net: &impl Forward, data: &DataLoader) -> Result<f64> {
    evaluate_with(|x| net.forward(x), data)
}

/// [`evaluate_accuracy`] for a function.
pub fn evaluate_with(net: impl Fn(&Tensor) -> Result<Tensor>, data: &DataLoader) -> Result<f64> {
    let mut accuracy = Mean::new(&data.context())?;
    autograd::pause(|| {
        data.epoch(0)?.try_for_each(|batch| {
            let (x, y) = batch?;
            let (right, of) = score(&net(&x)?, &y)?;
            accuracy.add(&right, of)
        })
    })?;
    accuracy.read()
}

/// A training run beyond the book's arguments.
#[derive(Clone, Copy, Default)]
pub struct RunOptions<'a> {
    /// Where an earlier run ended: numbering and order of the data go on from there, also inside an epoch.
    pub start: Position,
    /// Set by somebody else (a Ctrl-C handler, say) to end after the current batch.
    pub stop: Option<&'a AtomicBool>,
    /// Called after each batch, with how far the run is: to save a checkpoint, say. An error ends the run.
    pub after_batch: Option<&'a AfterBatch<'a>>,
    /// Prints nothing.
    pub quiet: bool,
    /// Runs op by op: the net is not [hybridized](Block::hybridize).
    pub eager: bool,
}

/// Called after each batch of a run.
pub type AfterBatch<'a> = dyn Fn(&Progress<'_>) -> Result<()> + 'a;

impl RunOptions<'_> {
    fn stopped(&self) -> bool {
        self.stop.is_some_and(|s| s.load(Ordering::Relaxed))
    }
}

/// What a training run brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The epochs that were finished.
    pub epochs: Vec<EpochReport>,
    /// Where to go on: after the last batch that was used.
    pub end: Position,
}

/// The book's training loop for convolutional nets: softmax cross-entropy, one line an epoch.
///
/// Each step differentiates the batch's summed loss (times the trainer's loss scale, if it has one) and divides by the nominal
/// batch size, also for a smaller last batch. Prints `training on gpu(0)` first. On a terminal a bar shows the loss, images/s and the time
/// that the whole run will still take (feature `progress`).
///
/// # Errors
/// Those of the layers, with the layer's path.
pub fn train_ch5(
    net: &impl Block,
    train: &DataLoader,
    test: &DataLoader,
    trainer: &mut Trainer,
    epochs: usize,
) -> Result<Vec<EpochReport>> {
    Ok(train_run(net, train, test, trainer, epochs, RunOptions::default())?.epochs)
}

/// [`train_ch5`] that can be stopped and resumed: with the same parameters, a run in two parts ends with the same bits as
/// one in one part (for optimizers without state). `epochs` counts from the start of the whole training.
pub fn train_run(
    net: &impl Block,
    train: &DataLoader,
    test: &DataLoader,
    trainer: &mut Trainer,
    epochs: usize,
    options: RunOptions<'_>,
) -> Result<Run> {
    if !options.quiet {
        println!("training on {}", train.context());
    }
    if !options.eager {
        net.hybridize();
    }
    let loss = SoftmaxCrossEntropy::new();
    let forward = |x: &Tensor| net.forward(x);
    let criterion = |p: &Tensor, y: &Tensor| loss.forward(p, y);
    let mut run = Run { epochs: Vec::new(), end: options.start };
    let mut pace = Pace::new(images_left(train, options.start, epochs), options.quiet);
    let mut updater = Updater::Trainer(trainer);
    while run.end.epoch < epochs as u64 {
        match run_epoch(&forward, &criterion, train, test, &mut updater, run.end, &options, &mut pace)? {
            Ended::Epoch(report) => {
                if !options.quiet {
                    pace.hide();
                    println!("{report}");
                }
                run.epochs.push(report);
                run.end = Position { epoch: run.end.epoch + 1, batch: 0 };
                if options.stopped() {
                    break;
                }
            }
            Ended::Stopped(at) => {
                run.end = at;
                break;
            }
        }
    }
    Ok(run)
}

/// Images from a position to the end of the run.
fn images_left(train: &DataLoader, start: Position, epochs: usize) -> usize {
    let epochs = (epochs as u64).saturating_sub(start.epoch) as usize;
    epochs.saturating_mul(train.samples()).saturating_sub(start.batch.saturating_mul(train.batch_size()))
}

/// How [`train_ch3`] changes the parameters.
pub enum Updater<'a> {
    /// By a trainer.
    Trainer(&'a mut Trainer),
    /// By the book's own `sgd` on plain tensors: w ← w − lr · dw / batch size.
    Sgd {
        /// Tensors with `attach_grad`.
        params: &'a [Tensor],
        /// The learning rate.
        lr: f64,
    },
}

impl Updater<'_> {
    /// The backward pass of a loss, and the update for a batch of that size.
    fn step(&mut self, l: &Tensor, n: usize) -> Result<()> {
        match self {
            Updater::Trainer(t) => t.backward(l).and_then(|()| t.step(n)),
            Updater::Sgd { params, lr } => l.backward().and_then(|()| sgd(params, *lr, n)),
        }
    }
}

/// The book's training loop for functions and small nets: any loss, any updater, one line an epoch (without the time).
pub fn train_ch3(
    net: impl Fn(&Tensor) -> Result<Tensor>,
    train: &DataLoader,
    test: &DataLoader,
    loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    epochs: usize,
    updater: &mut Updater<'_>,
) -> Result<Vec<EpochReport>> {
    let mut reports = Vec::new();
    let options = RunOptions::default();
    let mut pace = Pace::new(images_left(train, options.start, epochs), options.quiet);
    for epoch in 0..epochs {
        let at = Position { epoch: epoch as u64, batch: 0 };
        let Ended::Epoch(r) = run_epoch(&net, &loss, train, test, updater, at, &options, &mut pace)? else { break };
        pace.hide();
        println!("epoch {}, loss {:.4}, train acc {:.3}, test acc {:.3}", r.epoch, r.loss, r.train_accuracy, r.test_accuracy);
        reports.push(r);
    }
    Ok(reports)
}

/// The book's minibatch stochastic gradient descent: w ← w − lr · dw / batch size for each parameter, once for one that is listed
/// twice.
///
/// # Errors
/// [`Error::Invalid`] for a learning rate that is negative or not finite and for a batch size of 0, [`Error::Autograd`] for a tensor
/// without `attach_grad`; then nothing has been changed.
pub fn sgd(params: &[Tensor], lr: f64, batch_size: usize) -> Result<()> {
    if batch_size == 0 {
        return Err(Error::invalid("sgd", "a batch size of 0"));
    }
    optim::at_least_0("sgd", "the learning rate", lr)?;
    let params = Tensor::distinct(params);
    let step = |p: &&Tensor| p.grad()?.affine(-lr / batch_size as f64, 0.0);
    let steps = params.iter().map(step).collect::<Result<Vec<_>>>()?;
    params.iter().zip(&steps).try_for_each(|(p, step)| p.update(|w| w.add_assign(&step.array())))
}

/// How an epoch ended.
enum Ended {
    Epoch(EpochReport),
    /// After the batch before this position.
    Stopped(Position),
}

/// One epoch of training from `at` on, and the test pass.
#[allow(clippy::too_many_arguments)] // The book's arguments, and what a longer run needs.
fn run_epoch(
    net: &dyn Fn(&Tensor) -> Result<Tensor>,
    loss: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>,
    train: &DataLoader,
    test: &DataLoader,
    updater: &mut Updater<'_>,
    at: Position,
    options: &RunOptions<'_>,
    pace: &mut Pace,
) -> Result<Ended> {
    let start = Instant::now();
    let (mut losses, mut accuracy, mut samples) = (Mean::new(&train.context())?, Mean::new(&train.context())?, 0);
    let epoch = at.epoch as usize + 1;
    let mut next = at;
    for batch in train.resume(at)? {
        let (x, y) = batch?;
        let (logits, l) = autograd::record(|| -> Result<_> {
            let logits = net(&x)?;
            let l = loss(&logits, &y)?;
            Ok((logits, l))
        })?;
        updater.step(&l, train.batch_size())?;
        losses.add(&l, l.size())?;
        let (right, of) = score(&logits, &y)?;
        accuracy.add(&right, of)?;
        samples += x.len();
        next.batch += 1;
        pace.batch(x.len(), epoch, || losses.read())?;
        if let (Some(after), Updater::Trainer(trainer)) = (options.after_batch, &mut *updater) {
            let Pace { batches, images, images_in_all, .. } = *pace;
            after(&Progress { trainer, at: next, batches, images, images_in_all, elapsed: pace.elapsed() })?;
        }
        // After the last batch nothing is left of the epoch but its test pass.
        if options.stopped() && next.batch < train.batches() {
            return Ok(Ended::Stopped(next));
        }
    }
    let (loss, train_accuracy) = (losses.read()?, accuracy.read()?);
    if !loss.is_finite() && samples > 0 {
        eprintln!("hadal: the loss of epoch {epoch} is {loss}: training has diverged; try a smaller learning rate");
    }
    let test_accuracy = evaluate_with(net, test)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Ended::Epoch(EpochReport { epoch, loss, train_accuracy, test_accuracy, seconds, samples }))
}
