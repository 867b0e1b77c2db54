//! Every model at the size that it is trained at, on each card, with kernels that do nothing: plans, launch limits, shared memory, tensor
//! maps, the rules of capture. What a step launches, fills, copies and encodes is compared with `docs/launches.tsv`.
//!
//! ```text
//! HADAL_EMU=null emulator/run cargo test --release --test full_size                         what CI runs
//! HADAL_FULL_SIZE=all HADAL_EMU=null emulator/run cargo test --release --test full_size     every model, dtype and card
//! HADAL_LAUNCHES=write HADAL_EMU=null emulator/run …                                        writes the table of what CI runs
//! ```
//!
//! With `HADAL_FULL_SIZE=all` the steps that are not in the table are run and checked, and not compared.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use hadal::{
    Context, DType, Layout, Result, Tensor, Trainer, autograd,
    cuda::Graph,
    gpu,
    loss::{L2, SoftmaxCrossEntropy},
    models::{self, CARDS, Card},
    optim::{LossScale, Sgd},
    precision::{self, Precision},
};

#[path = "common/mod.rs"]
mod common;

/// The emulator's presets; see emulator/README.md.
const GPUS: [&str; 7] = ["t4", "a100", "rtx3090", "rtx4090", "h100", "b200", "rtx5090"];
/// What a child process of this test takes: `gpu`.
const CHILD: &str = "HADAL_FULL_SIZE_OF";
const COLUMNS: [&str; 7] = ["launches", "memsets", "uploads", "downloads", "copies", "encodes", "attributes"];

type Row = [u64; COLUMNS.len()];
/// By "gpu model dtype layout what", tabs between.
type Table = BTreeMap<String, Row>;

fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/launches.tsv")
}

fn everything() -> bool {
    env::var("HADAL_FULL_SIZE").is_ok_and(|v| v == "all")
}

/// The driver's counts since the process began, by name.
fn counts(ctx: &Context) -> Result<Row> {
    ctx.synchronize()?;
    let file = env::var("HADAL_EMU_COUNTS").expect("the file of counts");
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
    let line = text.lines().rfind(|l| l.starts_with("sync ")).expect("a line of the synchronization");
    let of = |name: &str| {
        line.split(' ').filter_map(|w| w.split_once('=')).find(|w| w.0 == name).map_or(0, |w| w.1.parse().expect("a count"))
    };
    Ok(COLUMNS.map(of))
}

/// What one call of `f` does. It has been called before: programs are loaded and memory is taken.
fn count(ctx: &Context, f: &mut dyn FnMut() -> Result<()>) -> Result<Row> {
    f()?;
    f()?;
    let before = counts(ctx)?;
    f()?;
    let mut after = counts(ctx)?;
    after.iter_mut().zip(before).for_each(|(a, b)| *a -= b);
    Ok(after)
}

/// Steps of training and inference of one model, eager and captured.
fn measure(
    ctx: &Context,
    card: &Card,
    numbers: (DType, Precision),
    layout: Layout,
    out: &mut dyn FnMut(&str, Row),
) -> Result<()> {
    let net = card.build(&card.options())?;
    net.initialize(card.init(), ctx)?;
    net.hybridize();
    net.cast(numbers.0)?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(card.learning_rate));
    if numbers.0 == DType::F16 {
        trainer = trainer.loss_scale(LossScale::dynamic());
    }
    let batch = card.batch_size;
    let x = Tensor::uniform(0.0, 1.0, &[&[batch], card.input].concat(), ctx)?.cast(numbers.0)?;
    let x = Tensor::new(x.array().to_layout(layout)?);
    let y = if card.classifies {
        Tensor::uniform(0.0, 10.0, &[batch], ctx)?.cast(DType::I64)?
    } else {
        Tensor::uniform(0.0, 1.0, &[batch, 1], ctx)?.cast(numbers.0)?
    };
    let mut train = || {
        precision::with(numbers.1, || {
            let l = autograd::record(|| {
                let y_hat = net.forward(&x)?;
                if card.classifies { SoftmaxCrossEntropy::new().forward(&y_hat, &y) } else { L2::new().forward(&y_hat, &y) }
            })?;
            trainer.backward(&l)?;
            trainer.step(batch)
        })
    };
    out("train", count(ctx, &mut train)?);
    let (graph, ()) = Graph::capture(ctx, &mut train)?;
    out("train, captured", count(ctx, &mut || graph.replay())?);
    let infer = || precision::with(numbers.1, || net.forward(&x));
    out("infer", count(ctx, &mut || infer().map(drop))?);
    let (graph, _y_hat) = Graph::capture(ctx, infer)?;
    out("infer, captured", count(ctx, &mut || graph.replay())?);
    Ok(())
}

/// All of one card, in a process of its own: the emulated card is the process's.
fn child(name: &str) {
    let ctx = gpu(0).unwrap_or_else(|e| panic!("{name}: {e}"));
    let report = hadal::doctor();
    assert!(report.contains("gpu(0)"), "{name}: {report}");
    let tf32 = (DType::F32, Precision::Tf32);
    // What CI runs: on each card the perceptron and ResNet-18 in all dtypes and layouts, on one of them every model in bf16.
    let all = [(DType::F32, Precision::F32), tf32, (DType::BF16, Precision::F32), (DType::F16, Precision::F32)];
    let mut failures = Vec::new();
    for card in CARDS {
        let few = !everything() && !matches!(card.name, "mlp" | "resnet18");
        if few && name != "h100" {
            continue;
        }
        for numbers in all {
            if few && numbers.0 != DType::BF16 {
                continue;
            }
            let dtype = if numbers == tf32 { "tf32".to_owned() } else { numbers.0.to_string() };
            for (layout, shown) in [(Layout::ChannelsLast, "NHWC"), (Layout::RowMajor, "NCHW")] {
                if (card.input.len() < 3 || few) && layout == Layout::ChannelsLast {
                    continue;
                }
                let key = format!("{name}\t{}\t{dtype}\t{shown}", card.name);
                let mut print =
                    |what: &str, row: Row| println!("\nrow\t{key}\t{what}\t{}", row.map(|n| n.to_string()).join("\t"));
                if let Err(e) = measure(&ctx, card, numbers, layout, &mut print) {
                    failures.push(format!("{key}: {e}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn read(text: &str, mark: &str) -> Table {
    let row = |line: &str| {
        let words: Vec<&str> = line.strip_prefix(mark)?.split('\t').collect();
        let (key, numbers) = words.split_at_checked(words.len().checked_sub(COLUMNS.len())?)?;
        let numbers: Vec<u64> = numbers.iter().map(|n| n.parse().ok()).collect::<Option<_>>()?;
        Some((key.join("\t"), numbers.try_into().ok()?))
    };
    text.lines().filter_map(row).collect()
}

fn write(table: &Table) {
    let head = "# What one step does on the driver, at full size, each card, with all programs loaded: kernels launched, memory filled, copied from and to\n\
                # the host and on the device, tensor maps encoded, function attributes set. Of the null driver; compared by tests/full_size.rs,\n\
                # written by: HADAL_LAUNCHES=write HADAL_EMU=null emulator/run cargo test --release --test full_size\n";
    let mut text = format!("{head}gpu\tmodel\tdtype\tlayout\twhat\t{}\n", COLUMNS.join("\t"));
    for (key, row) in table {
        text += &format!("{key}\t{}\n", row.map(|n| n.to_string()).join("\t"));
    }
    let beside = place().with_extension("new");
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, place())).expect("the table is written");
}

#[test]
fn every_step_at_full_size_does_what_the_table_says() {
    if let Ok(name) = env::var(CHILD) {
        return child(&name);
    }
    if env::var("HADAL_EMU").is_ok_and(|v| v != "null")
        || env::var_os("HADAL_EMULATOR").is_none()
        || env::var_os("HADAL_EMU").is_none()
    {
        return common::say("full size: NOT run: it needs HADAL_EMU=null emulator/run");
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (mut now, mut failures) = (Table::new(), Vec::new());
    for name in GPUS {
        let counts = folder.join(format!("counts-{name}-{}.txt", std::process::id()));
        let output = Command::new(env::current_exe().expect("this program"))
            .args(["every_step_at_full_size_does_what_the_table_says", "--exact", "--nocapture"])
            .envs([(CHILD, name), ("HADAL_EMU_CARD", name)])
            .env("HADAL_EMU_COUNTS", &counts)
            .output()
            .expect("it starts");
        let _ = fs::remove_file(&counts);
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        now.extend(read(&said, "row\t"));
        // The emulator says on stderr what it refused.
        if !output.status.success() || errors.contains("hadal emulator") {
            failures.push(format!("{name}: {}\n{errors}", output.status));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{} steps on {} cards, {} kernels launched", now.len(), GPUS.len(), now.values().map(|r| r[0]).sum::<u64>());
    if env::var("HADAL_LAUNCHES").is_ok_and(|v| v == "write") {
        return write(&now);
    }
    let stored = read(&fs::read_to_string(place()).expect("docs/launches.tsv"), "");
    let differs = |(key, row): (&String, &Row)| match stored.get(key) {
        Some(old) if old == row => None,
        None if everything() => None,
        old => Some(format!("{key}: {row:?}, stored {old:?}")),
    };
    let changed: Vec<String> = now.iter().filter_map(differs).collect();
    assert!(
        changed.is_empty() && !now.is_empty(),
        "{} of {} steps do other than docs/launches.tsv says ({COLUMNS:?}). If it is meant, write it anew: see tests/full_size.rs\n{}",
        changed.len(),
        now.len(),
        changed.join("\n")
    );
    assert!(models::names().all(|m| stored.keys().any(|k| k.split('\t').nth(1) == Some(m))), "a model is missing in the table");
}
