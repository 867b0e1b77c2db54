//! Each op alone, forward and backward.

use hadal::{
    DType, Layout, Result, Tensor, autograd,
    data::{DataLoader, ImageSet},
    eprintln,
    loss::SoftmaxCrossEntropy,
    ops::Conv2dOptions,
    ops::PoolOptions,
    precision::{self, Precision},
    println,
};

use super::{Numbers, Options, clock};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Shapes x, w; stride and padding.
    Conv(usize, usize),
    /// The 3x3 and the 1x1 convolution with which a block begins, added: shapes x, w of both; the stride.
    Entry(usize),
    /// Shapes a, b.
    Matmul,
    /// Shapes x, w, b.
    Dense,
    Relu,
    Sigmoid,
    Add,
    /// Shapes x, b; b is stretched.
    AddBias,
    /// Of two operands; its gradient looks at both.
    Maximum,
    /// To f32, or to bf16 from there.
    Cast,
    BatchNorm,
    /// With ReLU in the same pass.
    BatchNormRelu,
    /// With a residual (the last input) and ReLU in the same pass.
    BatchNormAddRelu,
    /// ResNet's first layers, as one op and as the ones that it replaces: shapes x, w, γ, β. Channels-last, whatever the others are.
    StemBlock,
    StemOps,
    MaxPool,
    AvgPool,
    GlobalAvgPool,
    Dropout,
    Softmax,
    SoftmaxCrossEntropy,
    Copy,
}

/// An op with the shapes of its inputs.
pub struct Case {
    name: String,
    kind: Kind,
    shapes: Vec<Vec<usize>>,
}

impl Case {
    fn new(name: impl Into<String>, kind: Kind, shapes: &[&[usize]]) -> Self {
        Case { name: name.into(), kind, shapes: shapes.iter().map(|s| s.to_vec()).collect() }
    }

    /// For other engines: what to measure under the same name.
    pub fn json(&self) -> String {
        let (op, stride, padding) = match self.kind {
            Kind::Conv(stride, padding) => ("Conv".to_owned(), stride, padding),
            Kind::Entry(stride) => ("Entry".to_owned(), stride, 1),
            other => (format!("{other:?}"), 1, 0),
        };
        let Case { name, shapes, .. } = self;
        format!(
            "{{\"name\": \"{name}\", \"op\": \"{op}\", \"shapes\": {shapes:?}, \"stride\": {stride}, \"padding\": {padding}}}"
        )
    }

    fn forward(&self, t: &[Tensor]) -> Result<Tensor> {
        let x = &t[0];
        match self.kind {
            Kind::Conv(stride, pad) => x.conv2d(&t[1], None, Conv2dOptions::new().stride([stride; 2]).padding([pad; 2])),
            Kind::Entry(stride) => {
                let o = Conv2dOptions::new().stride(stride);
                let (y, short_cut) = x.conv2d_pair((&t[1], None, o.padding(1)), (&t[2], None, o))?;
                &y + &short_cut
            }
            Kind::Matmul => x.matmul(&t[1]),
            Kind::Dense => x.dense(&t[1], Some(&t[2])),
            Kind::Relu => x.relu(),
            Kind::Sigmoid => x.sigmoid(),
            Kind::Add | Kind::AddBias => x + &t[1],
            Kind::Maximum => x.maximum(&t[1]),
            Kind::Cast => x.cast(if x.dtype() == DType::F32 { DType::BF16 } else { DType::F32 }),
            Kind::BatchNorm => Ok(x.batch_norm(&t[1], &t[2], 1e-5)?.0),
            Kind::BatchNormRelu => Ok(x.batch_norm_relu(&t[1], &t[2], None, 1e-5)?.0),
            Kind::BatchNormAddRelu => Ok(x.batch_norm_relu(&t[1], &t[2], Some(&t[3]), 1e-5)?.0),
            Kind::StemBlock => {
                let conv = Conv2dOptions::new().stride(2).padding(3);
                Ok(x.stem_block((&t[1], None), [&t[2], &t[3]], 1e-5, conv, PoolOptions::new(3).stride(2).padding(1))?.0)
            }
            Kind::StemOps => {
                let c = x.conv2d(&t[1], None, Conv2dOptions::new().stride(2).padding(3))?;
                c.batch_norm_relu(&t[2], &t[3], None, 1e-5)?.0.max_pool2d(PoolOptions::new(3).stride(2).padding(1))
            }
            Kind::MaxPool => x.max_pool2d(PoolOptions::new([3, 3]).stride([2, 2]).padding([1, 1])),
            Kind::AvgPool => x.avg_pool2d(PoolOptions::new(2)),
            Kind::GlobalAvgPool => x.global_avg_pool2d(),
            Kind::Dropout => x.dropout(0.5),
            Kind::Softmax => x.softmax(-1),
            Kind::SoftmaxCrossEntropy => SoftmaxCrossEntropy::new().forward(x, &t[1]),
            Kind::Copy => x.copy(),
        }
    }

    /// Floating-point operations of the forward pass; each of a product's two gradients takes as many.
    fn flops(&self, y: &[usize]) -> f64 {
        let per_output = match self.kind {
            Kind::Conv(..) => self.shapes[1][1..].iter().product(),
            Kind::Entry(_) => self.shapes[1][1] * (9 + 1),
            Kind::Matmul => self.shapes[0][1],
            Kind::Dense => self.shapes[1][1],
            _ => return 0.0,
        };
        2.0 * (count(y) * per_output) as f64
    }

    /// Elements that a backward pass reads beside dy, which has y's shape; `others` are those of the inputs without gradients.
    fn kept(&self, y: &[usize], others: usize, size: f64) -> f64 {
        match self.kind {
            Kind::AddBias | Kind::AvgPool | Kind::GlobalAvgPool | Kind::Dropout | Kind::SoftmaxCrossEntropy => 0.0,
            // A byte for each output, in elements of `size` bytes.
            Kind::MaxPool => count(y) as f64 / size,
            Kind::StemBlock | Kind::StemOps => others as f64 + count(y) as f64 / size,
            Kind::Maximum => 2.0 * others as f64,
            _ if others == 0 => count(&self.shapes[0]) as f64,
            _ => others as f64,
        }
    }

    /// The inputs that gradients are measured for, each alone, and what the measurement is called.
    fn gradients(&self) -> &'static [(&'static str, &'static [usize])] {
        match self.kind {
            // Nobody asks for the gradient of the images.
            Kind::Conv(..) if self.shapes[0][1] <= 4 => &[("dw", &[1])],
            Kind::Conv(..) => &[("dx", &[0]), ("dw", &[1])],
            Kind::Entry(_) => &[("dx", &[0]), ("dw", &[1, 2])],
            Kind::Matmul => &[("da", &[0]), ("db", &[1])],
            Kind::Dense => &[("dx", &[0]), ("dw, db", &[1, 2])],
            Kind::BatchNorm | Kind::BatchNormRelu => &[("dx, dγ, dβ", &[0, 1, 2])],
            Kind::BatchNormAddRelu => &[("dx, dγ, dβ, dr", &[0, 1, 2, 3])],
            Kind::StemBlock | Kind::StemOps => &[("dw, dγ, dβ", &[1, 2, 3])],
            Kind::Add | Kind::Copy | Kind::Cast => &[],
            Kind::AddBias => &[("db", &[1])],
            Kind::Maximum => &[("da", &[0])],
            _ => &[("dx", &[0])],
        }
    }
}

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// The convolutions of ResNet-18 on 96x96 images, the products of the MLP and larger ones, and what waits for memory.
pub fn table(o: &Options) -> Vec<Case> {
    let n = o.batch.unwrap_or(if o.quick {
        2
    } else if o.ctx.is_gpu() {
        256
    } else {
        32
    });
    let mut all = Vec::new();
    for (ci, co, h, k, s) in [
        (1, 64, 96, 7, 2),
        (64, 64, 24, 3, 1),
        (64, 128, 24, 3, 2),
        (64, 128, 24, 1, 2),
        (128, 128, 12, 3, 1),
        (128, 256, 12, 3, 2),
        (256, 256, 6, 3, 1),
        (256, 512, 6, 3, 2),
        (512, 512, 3, 3, 1),
    ] {
        let stride = if s == 1 { String::new() } else { format!("/{s}") };
        let name = format!("conv2d {ci}-{co} {h}x{h} {k}x{k}{stride}");
        all.push(Case::new(name, Kind::Conv(s, k / 2), &[&[n, ci, h, h], &[co, ci, k, k]]));
    }
    for (ci, co, h) in [(64, 128, 24), (128, 256, 12), (256, 512, 6)] {
        let shapes: [&[usize]; 3] = [&[n, ci, h, h], &[co, ci, 3, 3], &[co, ci, 1, 1]];
        all.push(Case::new(format!("block entry {ci}-{co} {h}x{h} /2"), Kind::Entry(2), &shapes));
    }
    // On a CPU one is the other.
    let kinds = [("stem block", Kind::StemBlock), ("stem block, its ops in turn", Kind::StemOps)];
    let shapes: [&[usize]; 4] = [&[n, 1, 96, 96], &[64, 1, 7, 7], &[64], &[64]];
    all.extend(kinds.into_iter().filter(|_| o.ctx.is_gpu()).map(|(name, kind)| Case::new(name, kind, &shapes)));
    let (large, map, wide) = if o.quick {
        (64, [n, 8, 6, 6], [8, 32])
    } else if o.ctx.is_gpu() {
        (8192, [n, 64, 48, 48], [4096, 4096])
    } else {
        (1024, [n, 64, 48, 48], [256, 1000])
    };
    let (rows, c) = (8 * n, map[1]);
    all.extend([
        Case::new(format!("matmul {large}"), Kind::Matmul, &[&[large, large], &[large, large]]),
        Case::new(format!("dense {rows}x784x256"), Kind::Dense, &[&[rows, 784], &[256, 784], &[256]]),
        Case::new("relu", Kind::Relu, &[&map]),
        Case::new("sigmoid", Kind::Sigmoid, &[&map]),
        Case::new("add", Kind::Add, &[&map, &map]),
        Case::new("add bias", Kind::AddBias, &[&map, &[1, c, 1, 1]]),
        Case::new("maximum", Kind::Maximum, &[&map, &map]),
        Case::new("cast", Kind::Cast, &[&map]),
        Case::new("batch_norm", Kind::BatchNorm, &[&map, &[c], &[c]]),
        Case::new("batch_norm + relu", Kind::BatchNormRelu, &[&map, &[c], &[c]]),
        Case::new("batch_norm + add + relu", Kind::BatchNormAddRelu, &[&map, &[c], &[c], &map]),
        Case::new("max_pool2d 3x3/2", Kind::MaxPool, &[&map]),
        Case::new("avg_pool2d 2x2", Kind::AvgPool, &[&map]),
        Case::new("global_avg_pool2d", Kind::GlobalAvgPool, &[&map]),
        Case::new("dropout", Kind::Dropout, &[&wide]),
        Case::new("dropout of images", Kind::Dropout, &[&map]),
        Case::new("softmax", Kind::Softmax, &[&wide]),
        Case::new("softmax_cross_entropy", Kind::SoftmaxCrossEntropy, &[&wide, &wide[..1]]),
        Case::new(
            "softmax_cross_entropy 10",
            Kind::SoftmaxCrossEntropy,
            &[&[map[0] * map[2] * map[3], 10], &[map[0] * map[2] * map[3]]],
        ),
    ]);
    all.retain(|case| case.name.contains(&o.only));
    all
}

/// One line of the table.
struct Row {
    name: String,
    pass: &'static str,
    numbers: Numbers,
    seconds: f64,
    flops: f64,
    bytes: f64,
}

pub fn run(o: &Options) -> Result<()> {
    // More than any cache holds.
    let elements = if o.quick { 1 << 12 } else { 64 << 20 };
    let copied = Case::new("copy", Kind::Copy, &[&[elements]]);
    let copy = measure(&copied, Numbers(DType::F32, Precision::F32), o)?.remove(0);
    let ceiling = copy.bytes / copy.seconds;
    if o.json {
        let name = o.ctx.device_name()?;
        println!(
            "{{\"engine\": \"hadal\", \"context\": \"{}\", \"device\": \"{name}\", \"copy_gbs\": {:.1}}}",
            o.ctx,
            ceiling / 1e9
        );
    } else {
        println!("{} ({}); copy {:.1} GB/s, read and written", o.ctx, o.ctx.device_name()?, ceiling / 1e9);
    }
    for &numbers in &o.dtypes {
        let mut rows = Vec::new();
        for case in table(o) {
            rows.extend(precision::with(numbers.1, || measure(&case, numbers, o))?);
        }
        if INPUT.contains(&o.only) {
            rows.push(input(numbers, o)?);
        }
        let best = rows.iter().map(|r| r.flops / r.seconds).fold(0.0, f64::max);
        if !o.json {
            println!("\n{:<34}{:<12}{:>10}{:>9}{:>7}{:>9}{:>7}", numbers.to_string(), "", "µs", "TFLOP/s", "", "GB/s", "");
        }
        rows.iter().for_each(|r| print(r, best, ceiling, o));
    }
    Ok(())
}

fn print(r: &Row, best: f64, copy: f64, o: &Options) {
    let (flops, bytes) = (r.flops / r.seconds, r.bytes / r.seconds);
    if o.json {
        println!(
            "{{\"engine\": \"hadal\", \"context\": \"{}\", \"name\": \"{}\", \"pass\": \"{}\", \"dtype\": \"{}\", \"us\": {:.3}, \
             \"tflops\": {:.6}, \"of_best\": {:.6}, \"gbs\": {:.5}, \"of_copy\": {:.6}}}",
            o.ctx,
            r.name,
            r.pass,
            r.numbers,
            r.seconds * 1e6,
            flops / 1e12,
            if best > 0.0 { flops / best } else { 0.0 },
            bytes / 1e9,
            bytes / copy
        );
        return;
    }
    let compute =
        if r.flops > 0.0 { format!("{:>9.3}{:>6.0}%", flops / 1e12, 100.0 * flops / best) } else { format!("{:>16}", "") };
    println!("{:<34}{:<12}{:>10.1}{compute}{:>9.1}{:>6.0}%", r.name, r.pass, r.seconds * 1e6, bytes / 1e9, 100.0 * bytes / copy);
}

/// What [`input`] measures.
const INPUT: &str = "input batch 28x28 to 96x96";

/// A batch of the main job as it comes from a loader: gathered, resized and scaled from bytes. On a GPU a kernel does it, which is not
/// captured, since the host hands it the images' numbers: the launch counts.
fn input(numbers: Numbers, o: &Options) -> Result<Row> {
    let (n, batches, [side, to]) = (o.batch.unwrap_or(if o.quick { 2 } else { 256 }), if o.quick { 2 } else { 16 }, [28, 96]);
    let images = (0..n * batches * side * side).map(|i| (i * 37 % 251) as u8).collect();
    let set = ImageSet::new(images, vec![1; n * batches], side, side)?;
    let loader = DataLoader::new(&set, n, &o.ctx)?.resize(to, to)?.dtype(numbers.0)?.shuffle(1);
    let mut epoch = 0;
    let work = &mut || {
        epoch += 1;
        loader.epoch(epoch)?.try_for_each(|batch| batch.map(drop))
    };
    let seconds = clock::time(&o.ctx, o.quick, work)? / batches as f64;
    let bytes = (n * (side * side + to * to * numbers.0.size() + 1 + 8)) as f64;
    Ok(Row { name: INPUT.into(), pass: "forward", numbers, seconds, flops: 0.0, bytes })
}

/// The forward pass, and each gradient: the time of both passes less that of the forward one.
fn measure(case: &Case, numbers: Numbers, o: &Options) -> Result<Vec<Row>> {
    let Numbers(dtype, _) = numbers;
    let inputs = |gradients: &[usize]| -> Result<Vec<Tensor>> {
        let tensor = |(i, shape): (usize, &Vec<usize>)| -> Result<Tensor> {
            let labels = case.kind == Kind::SoftmaxCrossEntropy && i == 1;
            let x = Tensor::uniform(0.1, 1.0, shape, &o.ctx)?.cast(if labels { DType::I64 } else { dtype })?;
            // Scales and offsets stay in f32, as in training.
            let normal = matches!(case.kind, Kind::BatchNorm | Kind::BatchNormRelu | Kind::BatchNormAddRelu);
            let stem = matches!(case.kind, Kind::StemBlock | Kind::StemOps);
            let x = if (normal && (i == 1 || i == 2)) || (stem && i > 1) { x.cast(DType::F32)? } else { x };
            let last = (o.channels_last || stem) && shape.len() == 4;
            let x = Tensor::new(x.array().to_layout(if last { Layout::ChannelsLast } else { Layout::RowMajor })?);
            Ok(if gradients.contains(&i) { x.attach_grad() } else { x })
        };
        case.shapes.iter().enumerate().map(tensor).collect()
    };
    let x = inputs(&[])?;
    let y = case.forward(&x)?;
    let (y, y_size) = (y.shape(), y.dtype().size() as f64);
    let work = &mut || autograd::train_mode(|| case.forward(&x)).map(drop);
    let forward = clock::time(&o.ctx, o.quick, work)?;
    let size = dtype.size() as f64;
    let (read, written) = (case.shapes.iter().map(|s| count(s)).sum::<usize>() as f64 * size, count(&y) as f64 * y_size);
    let row = |pass, seconds, bytes| Row { name: case.name.clone(), pass, numbers, seconds, flops: case.flops(&y), bytes };
    let mut rows = vec![row("forward", forward, read + written)];
    for &(pass, of) in case.gradients() {
        let x = inputs(of)?;
        let work = &mut || autograd::record(|| case.forward(&x))?.backward();
        let both = clock::time(&o.ctx, o.quick, work)?;
        // dy and the other inputs are read, the gradients written.
        let gradients: usize = of.iter().map(|&i| count(&case.shapes[i])).sum();
        let others: usize = (0..case.shapes.len()).filter(|i| !of.contains(i)).map(|i| count(&case.shapes[i])).sum();
        let kept = case.kept(&y, others, size);
        let backward = both - forward;
        if backward < 0.02 * both {
            eprintln!("{} {pass}: lost in the noise of the forward pass", case.name);
            continue;
        }
        // The gradient that the forward pass writes beside the losses needs no dy.
        let dy = if case.kind == Kind::SoftmaxCrossEntropy { 0.0 } else { written };
        rows.push(row(pass, backward, dy + kept * size + gradients as f64 * size));
    }
    Ok(rows)
}
