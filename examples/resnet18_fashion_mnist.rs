//! Trains the book's ResNet-18 on Fashion-MNIST: on gpu(0) if there is one, else on the CPU.
//!
//!     cargo run --release --example resnet18_fashion_mnist -- --help

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser;
use hadal::{
    Context, DType, Error, Result, Trainer,
    data::{Download, FashionMnist, Position},
    gpu, init, models,
    nn::Block,
    optim::{LossScale, Sgd},
    precision::{self, Precision},
    train::{RunOptions, train_run},
};

/// Trains ResNet-18 on Fashion-MNIST, as section 7.6 of the book does.
#[derive(Parser)]
struct Args {
    /// cpu, gpu, gpu:1, … or auto: gpu(0) if it can be used, else the CPU
    #[arg(long, default_value = "auto")]
    context: String,
    /// Passes over the training images, those before --resume included
    #[arg(long, default_value_t = 5)]
    epochs: usize,
    /// Images in a step [default: 256; 50 on the shipped sample]
    #[arg(long)]
    batch_size: Option<usize>,
    /// What is computed in: f32, tf32 (f32 with rounded products), bf16 or f16
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Learning rate
    #[arg(long, default_value_t = 0.05)]
    lr: f64,
    /// Side of the images after resizing
    #[arg(long, default_value_t = 96)]
    resize: usize,
    /// Decides first values and the order of the images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder with the four idx files [default: searched, downloaded, else the shipped sample]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Never download
    #[arg(long)]
    offline: bool,
    /// Use only the first N images of each set
    #[arg(long)]
    limit: Option<usize>,
    /// Write the parameters there at the end, also after Ctrl-C: --resume then goes on with the next batch. With 16 bits, the
    /// trainer's f32 copies of them go to FILE.states
    #[arg(long)]
    save: Option<PathBuf>,
    /// Start from parameters that --save wrote
    #[arg(long)]
    resume: Option<PathBuf>,
}

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
    let states = |file: &Path| (dtype.size() < 4).then(|| PathBuf::from(format!("{}.states", file.display())));
    if let Some(file) = args.resume.as_deref().and_then(states) {
        trainer.load_states(file)?;
    }

    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let handler = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nending after this batch; Ctrl-C again ends at once");
    });
    handler.map_err(|e| Error::invalid("ctrl-c", e.to_string()))?;

    let options = RunOptions { start, stop: Some(&stop), quiet: false };
    let run = train_run(&net, &train, &test, &mut trainer, args.epochs, options)?;
    if let Some(last) = run.epochs.last() {
        println!("{:.1} images/s on {ctx}", last.samples as f64 / last.seconds);
    }
    if let Some(file) = &args.save {
        let Position { epoch, batch } = run.end;
        net.save_with(file, &[("epoch", &epoch.to_string()), ("batch", &batch.to_string())])?;
        if let Some(file) = states(file) {
            trainer.save_states(file)?;
        }
        println!("parameters after {epoch} epoch(s) and {batch} batch(es) are in {}", file.display());
    }
    Ok(())
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
