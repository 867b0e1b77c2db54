//! Trains the book's ResNet-18 on Fashion-MNIST: on gpu(0) if there is one, else on the CPU.
//!
//!     cargo run --release --example resnet18_fashion_mnist -- --help

mod args;

use std::{
    cell::Cell,
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use args::Args;
use hadal::{
    Context, DType, Error, Result, Trainer,
    data::{Download, FashionMnist, Position},
    eprint, eprintln, gpu, init, models,
    nn::{Block, Sequential},
    optim::{LossScale, Sgd},
    precision::{self, Precision},
    println,
    train::{Progress, RunOptions, spoken, train_run},
};

fn main() {
    if let Err(e) = run(&Args::parse()) {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let ctx: Context = args.context.parse()?;
    if args.context == "auto"
        && let Err(why) = gpu(0)
    {
        println!("no GPU: {why}");
    }
    let data = load(args)?;
    println!("{}", data.describe());
    let (mut train, mut test) = (data.train.clone(), data.test.clone());
    if let Some(n) = args.limit {
        (train, test) = (train.take(n), test.take(n));
    }
    let data = FashionMnist { train, test, source: data.source.clone() };
    // The sample has few images: smaller batches, so that there are steps enough to learn something.
    let batch_size = args.batch_size.unwrap_or(if data.is_sample() { 50 } else { 256 });
    let (dtype, products) = match args.dtype.as_str() {
        "tf32" => (DType::F32, Precision::Tf32),
        name => (name.parse()?, Precision::F32),
    };
    precision::set(products);
    let (train, test) = data.loaders(batch_size, Some(args.resize), args.seed, &ctx)?;
    let (train, test) = (train.dtype(dtype)?, test.dtype(dtype)?);

    hadal::random::seed(args.seed);
    let net = models::resnet18(10);
    net.cast(dtype)?;
    let mut start = Position::default();
    match &args.resume {
        Some(file) => {
            net.load(file, &ctx)?;
            let words = hadal::nn::metadata(file)?;
            let word = |name: &str| words.get(name).and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
            start = Position { epoch: word("epoch"), batch: word("batch") as usize };
            println!("resumed from {} after {} epoch(s) and {} batch(es)", file.display(), start.epoch, start.batch);
        }
        None => net.initialize(init::Xavier::new(), &ctx)?,
    }
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(args.lr));
    if dtype == DType::F16 {
        trainer = trainer.loss_scale(LossScale::dynamic());
    }
    if let Some(file) = args.resume.as_deref().and_then(|file| states(file, dtype)) {
        trainer.load_states(file)?;
    }

    let stop = stop_on_signals(args.save.as_deref())?;
    let save = |trainer: &Trainer, at: Position| args.save.as_deref().map_or(Ok(()), |file| save(&net, trainer, at, dtype, file));
    let every = Duration::try_from_secs_f64(args.checkpoint * 60.0).unwrap_or(Duration::MAX);
    let saved = Cell::new(Instant::now());
    let after_batch = |p: &Progress<'_>| {
        if p.batches == 3 {
            say_how_long(p, args, &ctx);
        }
        // The first one is early: where nothing can be written, that is told now and not after hours.
        if p.batches == 1 {
            save(p.trainer, p.at)?;
        } else if !every.is_zero() && saved.get().elapsed() >= every {
            // A disk that is full now may have room at the end.
            save(p.trainer, p.at).unwrap_or_else(|e| eprintln!("no checkpoint: {e}"));
            saved.set(Instant::now());
        }
        Ok(())
    };
    let options =
        RunOptions { start, stop: Some(&stop), after_batch: Some(&after_batch), eager: args.eager, ..RunOptions::default() };
    let run = train_run(&net, &train, &test, &mut trainer, args.epochs, options)?;
    if let Some(last) = run.epochs.last() {
        println!("{:.1} images/s on {ctx}", last.samples as f64 / last.seconds);
    }
    let Position { epoch, batch } = run.end;
    match &args.save {
        Some(file) => {
            save(&trainer, run.end)?;
            println!("parameters after {epoch} epoch(s) and {batch} batch(es) are in {}", file.display());
        }
        None if stop.load(Ordering::Relaxed) => {
            eprintln!("what {epoch} epoch(s) and {batch} batch(es) have taught the net is lost: there was no --save FILE");
        }
        None => {}
    }
    Ok(())
}

/// Where the trainer's states are kept, beside the parameters: 16-bit parameters have copies in f32, plain SGD has nothing else.
fn states(file: &Path, dtype: DType) -> Option<PathBuf> {
    (dtype.size() < 4).then(|| PathBuf::from(format!("{}.states", file.display())))
}

fn save(net: &Sequential, trainer: &Trainer, at: Position, dtype: DType, file: &Path) -> Result<()> {
    net.save_with(file, &[("epoch", &at.epoch.to_string()), ("batch", &at.batch.to_string())])?;
    states(file, dtype).map_or(Ok(()), |file| trainer.save_states(file))
}

/// A flag that Ctrl-C sets, and what Slurm, Kubernetes and `timeout` send before they kill: SIGTERM.
fn stop_on_signals(save: Option<&Path>) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let then = match save {
        Some(file) => format!("then the parameters go to {}", file.display()),
        None => "and without --save FILE what was learned is lost".into(),
    };
    let handler = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nending after this batch, {then}; once more ends at once");
    });
    handler.map_err(|e| Error::invalid("signals", e.to_string()))?;
    Ok(stop)
}

/// A run of hours is announced, with what would be shorter.
fn say_how_long(p: &Progress<'_>, args: &Args, ctx: &Context) {
    let left = p.left();
    if left < Duration::from_secs(600) {
        return;
    }
    let rate = p.images as f64 / p.elapsed.as_secs_f64();
    // Images for about five minutes, in whole hundreds.
    let few = (rate * 300.0 / args.epochs.max(1) as f64 / 100.0).ceil() as usize * 100;
    eprintln!(
        "this takes about {} on {ctx} ({rate:.0} images/s); a first look of five minutes: --limit {few} --batch-size 50",
        spoken(left)
    );
}

/// The data set, with progress on a terminal while it is downloaded.
fn load(args: &Args) -> Result<FashionMnist> {
    let mut options = FashionMnist::options();
    if let Some(folder) = &args.data {
        options = options.folder(folder);
    }
    if args.offline {
        options = options.download(Download::Never);
    }
    let terminal = std::io::stderr().is_terminal();
    options.load_with(&mut |file, done, total| {
        if terminal {
            eprint!("\r{file}: {:.1} of {:.1} MB", done as f64 / 1e6, total as f64 / 1e6);
            if done >= total {
                eprintln!();
            }
        }
    })
}
