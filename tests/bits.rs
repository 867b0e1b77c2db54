//! The bits of one training step of every model: a tool that proves that a change of the code changes no number.
//!
//! Write the table before and after the change, then compare:
//!
//!     HADAL_BITS=/tmp/before.tsv cargo test --release --test bits -- --ignored
//!     HADAL_BITS=/tmp/before.tsv HADAL_EMU_CC=8.0 emulator/run cargo test --release --test bits -- --ignored
//!     diff /tmp/before.tsv /tmp/after.tsv
//!
//! Each line is `model dtype context hash`. The hash covers the loss, the gradients and the updated parameters. Without a GPU the
//! contexts are the CPU alone (f32 and f64); with one they are the GPU alone (f32, tf32, bf16, f16), named by `HADAL_EMU_CC`. Lines are
//! added to the file, and a line that is there already is not computed again, so that an interrupted run goes on.
//! `HADAL_BITS_ONLY=lenet,resnet18` limits the models.

use std::{
    collections::HashSet,
    env, fs,
    io::Write,
    time::{Duration, Instant},
};

use hadal::{
    Array, Context, DType, Result, Tensor, Trainer, autograd, cpu,
    data::{DataLoader, FashionMnist},
    init,
    loss::{L2, SoftmaxCrossEntropy},
    models::{self, Card, Options},
    optim::Sgd,
    precision::{self, Precision},
    random,
};

#[path = "common/mod.rs"]
mod common;

/// Names of dtypes, with the precision of f32.
const DTYPES: [(&str, DType, Precision); 5] = [
    ("f32", DType::F32, Precision::F32),
    ("tf32", DType::F32, Precision::Tf32),
    ("bf16", DType::BF16, Precision::F32),
    ("f16", DType::F16, Precision::F32),
    ("f64", DType::F64, Precision::F32),
];

/// FNV-1a over the values' bits.
struct Hash(u64);

impl Hash {
    fn add(&mut self, a: &Array) -> Result<()> {
        for byte in a.to_f64_vec()?.iter().flat_map(|v| v.to_bits().to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}

/// A model as it is, or narrow, and its batch.
#[derive(Clone, Copy)]
struct Size {
    narrow: bool,
    batch: usize,
}

fn batch(card: &Card, size: usize, ctx: &Context) -> Result<(Tensor, Tensor)> {
    if !card.classifies {
        let x = Tensor::uniform(-1.0, 1.0, &[&[size], card.input].concat(), ctx)?;
        return Ok((x, Tensor::arange(0.0, size as f64, 1.0, ctx)?));
    }
    let side = match (card.name, card.resize()) {
        ("alexnet" | "nin", _) => 67,
        (_, Some(_)) => 32,
        (_, None) => 28,
    };
    let set = FashionMnist::sample("a test")?.train.take(size);
    DataLoader::new(&set, size, ctx)?.resize(side, side)?.workers(0).epoch(0)?.next().expect("a batch")
}

/// The hash of loss, gradients and updated parameters of one step.
fn step(card: &Card, size: Size, dtype: DType, ctx: &Context) -> Result<u64> {
    let ratio = if size.narrow && card.takes_ratio { 16 } else { 1 };
    let options = Options { classes: 10, ratio, hidden: card.takes_hidden.then_some(24) };
    random::seed(1);
    let net = card.build(&options)?;
    net.initialize(init::Xavier::new(), ctx)?;
    let (x, y) = batch(card, size.batch, ctx)?;
    net.forward(&x)?;
    net.cast(dtype)?;
    let (x, y) = (x.cast(dtype)?, if card.classifies { y } else { y.cast(dtype)? });
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.01));
    random::seed(2);
    let loss = autograd::record(|| {
        let pred = net.forward(&x)?;
        if card.classifies { SoftmaxCrossEntropy::new().forward(&pred, &y) } else { L2::new().forward(&pred, &y) }
    })?;
    loss.backward()?;
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    hash.add(&loss.array())?;
    for p in net.parameters() {
        if let Ok(grad) = p.grad() {
            hash.add(&grad.array())?;
        }
    }
    trainer.step(size.batch)?;
    for p in net.parameters() {
        hash.add(&p.data()?.array())?;
    }
    Ok(hash.0)
}

#[test]
fn a_step_has_the_same_bits_twice() -> Result<()> {
    let card = models::card("lenet")?;
    for ctx in common::contexts() {
        let own = Size { narrow: true, batch: 3 };
        let first = step(card, own, DType::F32, &ctx)?;
        assert_eq!(first, step(card, own, DType::F32, &ctx)?);
        assert_ne!(first, step(card, Size { batch: 4, ..own }, DType::F32, &ctx)?);
    }
    Ok(())
}

#[test]
#[ignore = "a tool: writes a table for a comparison by hand"]
fn table() -> Result<()> {
    let path = env::var_os("HADAL_BITS").expect("HADAL_BITS names the table's file");
    let only = env::var("HADAL_BITS_ONLY").ok();
    let cc = env::var("HADAL_EMU_CC").unwrap_or_else(|_| "9.0".into());
    let (ctx, context) = match hadal::gpu(0) {
        Ok(ctx) => (ctx, format!("gpu-{cc}")),
        Err(_) => (cpu(), "cpu".to_owned()),
    };
    let known: HashSet<String> = fs::read_to_string(&path)
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.rsplit_once(' ').map(|(line, _)| line.to_owned()))
        .collect();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).expect("the table can be written");
    // Full width, and enough images for the kernels of large layers.
    let wide = [("resnet18", Size { narrow: false, batch: 16 }), ("lenet", Size { narrow: false, batch: 256 })];
    let narrow = models::names().map(|name| (name, Size { narrow: true, batch: 4 }));
    let start = Instant::now();
    for (name, size) in narrow.chain(wide) {
        if only.as_ref().is_some_and(|o| !o.split(',').any(|o| o == name)) {
            continue;
        }
        for (word, dtype, precision) in DTYPES {
            let wanted = if ctx == cpu() { matches!(word, "f32" | "f64") } else { word != "f64" };
            if !wanted {
                continue;
            }
            let line = format!("{name}{} {word} {context}", if size.narrow { "" } else { "-wide" });
            if known.contains(&line) {
                continue;
            }
            let hash = precision::with(precision, || step(models::card(name)?, size, dtype, &ctx))?;
            writeln!(file, "{line} {hash:016x}").expect("the table can be written");
            println!("{line} {hash:016x} {:?}", Duration::from_secs(start.elapsed().as_secs()));
        }
    }
    Ok(())
}
