//! What the book's chapters share: their options, the record of their figures, the data, and drawings.
//!
//! A chapter prints what the book prints. The figures that the book's tables hold also go, with `--record FILE`, into a file of
//! JSON lines, from which `cargo run --release --example results` makes docs/results.md.

pub mod draw;
pub mod matrix;
pub mod train;

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use hadal::{
    Context, Error, Result, Tensor,
    data::{DataLoader, FashionMnist},
    eprintln,
    train::EpochReport,
};

#[derive(Parser)]
struct Options {
    /// cpu, gpu, gpu:1, … or auto: gpu(0) if it can be used, else the CPU
    #[arg(long, default_value = "auto")]
    context: String,
    /// Decides everything that is drawn at random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A minute's worth at most: fewer epochs, the shipped sample instead of the whole data set
    #[arg(long)]
    quick: bool,
    /// Folder for the drawings
    #[arg(long, default_value = "book")]
    out: PathBuf,
    /// Append the figures to this file, a JSON object a line
    #[arg(long)]
    record: Option<PathBuf>,
}

/// Images in a batch of the shipped sample, at most.
const SAMPLE_BATCH: usize = 32;

/// Where a chapter runs, and where its figures and drawings go.
pub struct Page {
    pub ctx: Context,
    pub seed: u64,
    /// Small enough for CI; the code path is the same.
    pub quick: bool,
    chapter: String,
    out: PathBuf,
    record: Option<PathBuf>,
}

/// Runs a chapter with the command line's options.
pub fn run(chapter: fn(&Page) -> Result<()>) -> ExitCode {
    let page = Page::from_args().inspect(|page| {
        if page.quick {
            eprintln!("--quick is a smoke test: it shows that the program runs, and its figures mean nothing");
        }
    });
    match page.and_then(|page| chapter(&page)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

impl Page {
    fn from_args() -> Result<Page> {
        let Options { context, seed, quick, out, record } = Options::parse();
        let program = std::env::args().next().unwrap_or_default();
        let chapter = Path::new(&program).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        hadal::random::seed(seed);
        Ok(Page { ctx: context.parse()?, seed, quick, chapter, out, record })
    }

    /// Notes a figure of a table: its row (`scratch`, `concise`), its name (`train loss`), and the epoch, or 0.
    pub fn figure(&self, row: &str, name: &str, epoch: usize, value: f64) -> Result<()> {
        let Some(path) = &self.record else { return Ok(()) };
        let line = serde_json::json!({
            "chapter": self.chapter, "row": row, "name": name, "epoch": epoch, "value": value,
            "context": self.ctx.to_string(), "device": self.ctx.device_name()?, "seed": self.seed, "quick": self.quick,
        });
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut f| f.write_all(format!("{line}\n").as_bytes()))
            .map_err(|e| Error::invalid("record", format!("{}: {e}", path.display())))
    }

    /// Notes the elements of a small result, numbered from 0 on in row-major order where an epoch is noted else.
    pub fn elements(&self, row: &str, values: &Tensor) -> Result<()> {
        values.to_vec()?.iter().enumerate().try_for_each(|(i, &v)| self.figure(row, "element", i, v.into()))
    }

    /// Notes the loss and the two accuracies of every epoch, under the names that the book prints.
    pub fn epochs(&self, row: &str, reports: &[EpochReport]) -> Result<()> {
        for r in reports {
            self.figure(row, "loss", r.epoch, r.loss)?;
            self.figure(row, "train acc", r.epoch, r.train_accuracy)?;
            self.figure(row, "test acc", r.epoch, r.test_accuracy)?;
            self.figure(row, "time", r.epoch, r.seconds)?;
        }
        Ok(())
    }

    /// Fashion-MNIST in batches: the whole of it; with `--quick` the first `quick_images` of the sample that ships, so that
    /// the run is the same on every machine.
    pub fn fashion_mnist(
        &self,
        batch_size: usize,
        resize: Option<usize>,
        quick_images: usize,
    ) -> Result<(DataLoader, DataLoader)> {
        let data = if self.quick {
            let sample = FashionMnist::sample("--quick")?;
            FashionMnist { train: sample.train.take(quick_images), test: sample.test.take(quick_images), ..sample }
        } else {
            hadal::data::fashion_mnist()?
        };
        let mut batch_size = batch_size;
        if data.is_sample() && !self.quick {
            // In the book's batches the sample's epoch has eight steps, too few to learn from.
            batch_size = batch_size.min(SAMPLE_BATCH);
            eprintln!("{}; batches of {batch_size}", data.describe());
        }
        data.loaders(batch_size, resize, self.seed, &self.ctx)
    }

    /// The program's name.
    pub fn chapter(&self) -> &str {
        &self.chapter
    }

    /// The path of a drawing.
    pub fn drawing(&self, name: &str) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.out).map_err(|e| Error::invalid("draw", format!("{}: {e}", self.out.display())))?;
        Ok(self.out.join(name).with_extension("svg"))
    }
}
