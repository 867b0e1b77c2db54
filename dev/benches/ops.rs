//! Each op, forward and backward, at a size of the book's nets; on `gpu(0)` too where there is one.
//!
//!     cargo bench --bench ops -- conv2d

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hadal::{
    Context, DType, Layout, Result, Tensor, autograd, cpu,
    loss::{L2, SoftmaxCrossEntropy},
    ops::{Conv2dOptions, PoolOptions},
    precision::{self, Precision},
};

type Run = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// A name, the shapes of the variables, and the work; throughput counts the elements of the first shape.
fn table() -> Vec<(&'static str, Vec<Vec<usize>>, Run)> {
    let conv = |stride: usize, pad: usize| -> Run {
        Box::new(move |t| t[0].conv2d(&t[1], Some(&t[2]), Conv2dOptions::new().stride([stride; 2]).padding([pad; 2])))
    };
    let pool = PoolOptions::new([3, 3]).stride([2, 2]).padding([1, 1]);
    let map = vec![32, 64, 24, 24];
    vec![
        ("conv2d stem 7x7/2", vec![vec![32, 1, 96, 96], vec![64, 1, 7, 7], vec![64]], conv(2, 3)),
        ("conv2d 64 3x3", vec![map.clone(), vec![64, 64, 3, 3], vec![64]], conv(1, 1)),
        ("conv2d 64-128 3x3/2", vec![map.clone(), vec![128, 64, 3, 3], vec![128]], conv(2, 1)),
        ("conv2d 256 3x3", vec![vec![32, 256, 6, 6], vec![256, 256, 3, 3], vec![256]], conv(1, 1)),
        ("conv2d 512 3x3", vec![vec![32, 512, 3, 3], vec![512, 512, 3, 3], vec![512]], conv(1, 1)),
        ("matmul 512", vec![vec![512, 512], vec![512, 512]], Box::new(|t| t[0].matmul(&t[1]))),
        ("dense 256x784x256", vec![vec![256, 784], vec![256, 784], vec![256]], Box::new(|t| t[0].dense(&t[1], Some(&t[2])))),
        ("max_pool2d 3x3/2", vec![vec![32, 64, 48, 48]], Box::new(move |t| t[0].max_pool2d(pool))),
        ("avg_pool2d 3x3/2", vec![vec![32, 64, 48, 48]], Box::new(move |t| t[0].avg_pool2d(pool))),
        ("global_avg_pool2d", vec![map.clone()], Box::new(|t| t[0].global_avg_pool2d())),
        ("batch_norm", vec![map.clone(), vec![64], vec![64]], Box::new(|t| Ok(t[0].batch_norm(&t[1], &t[2], 1e-5)?.0))),
        (
            "batch_norm + add + relu",
            vec![map.clone(), vec![64], vec![64], map.clone()],
            Box::new(|t| Ok(t[0].batch_norm_relu(&t[1], &t[2], Some(&t[3]), 1e-5)?.0)),
        ),
        ("relu", vec![map.clone()], Box::new(|t| t[0].relu())),
        ("sigmoid", vec![map.clone()], Box::new(|t| t[0].sigmoid())),
        ("gelu", vec![map.clone()], Box::new(|t| t[0].gelu())),
        ("add", vec![map.clone(), map.clone()], Box::new(|t| &t[0] + &t[1])),
        ("mul by channel", vec![map.clone(), vec![1, 64, 1, 1]], Box::new(|t| &t[0] * &t[1])),
        ("sum over N, H, W", vec![map.clone()], Box::new(|t| t[0].sum(&[0, 2, 3]))),
        ("max over H, W", vec![map.clone()], Box::new(|t| t[0].max(&[2, 3]))),
        ("softmax", vec![vec![256, 1000]], Box::new(|t| t[0].softmax(-1))),
        ("dropout", vec![vec![256, 4096]], Box::new(|t| t[0].dropout(0.5))),
        ("permute N,H,W,C", vec![map.clone()], Box::new(|t| t[0].permute(&[0, 2, 3, 1]))),
        ("concat", vec![map.clone(), map.clone()], Box::new(|t| Tensor::concat(&[&t[0], &t[1]], 1))),
        ("l2_loss", vec![vec![256, 1000], vec![256, 1000]], Box::new(|t| L2::new().forward(&t[0], &t[1]))),
        (
            "softmax_cross_entropy",
            vec![vec![256, 1000]],
            Box::new(|t| SoftmaxCrossEntropy::new().forward(&t[0], &Tensor::zeros(&[256], &t[0].context())?)),
        ),
    ]
}

fn forward_and_backward(run: &Run, x: &[Tensor], ctx: &Context) -> Result<()> {
    autograd::record(|| run(x))?.backward()?;
    ctx.synchronize()
}

fn ops(c: &mut Criterion) {
    let contexts: Vec<Context> = std::iter::once(cpu()).chain(hadal::gpu(0)).collect();
    for (name, shapes, run) in table() {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(shapes[0].iter().product::<usize>() as u64));
        for ctx in &contexts {
            let x: Vec<Tensor> =
                shapes.iter().map(|s| Tensor::uniform(0.1, 1.0, s, ctx).expect("memory for a bench").attach_grad()).collect();
            group.bench_function(BenchmarkId::from_parameter(ctx), |b| {
                b.iter(|| forward_and_backward(&run, &x, ctx).expect("the op runs"));
            });
        }
        group.finish();
    }
}

/// Matrix products and convolutions of ResNet-18 in each precision, on `gpu(0)`: channels-last, batch 256; throughput counts
/// the multiplications of the forward pass, of which forward and backward make three times as many.
fn precisions(c: &mut Criterion) {
    let Ok(gpu) = hadal::gpu(0) else { return };
    let conv =
        |stride: usize| -> Run { Box::new(move |t| t[0].conv2d(&t[1], None, Conv2dOptions::new().stride(stride).padding(1))) };
    let matmul = || -> Run { Box::new(|t| t[0].matmul(&t[1])) };
    let table: Vec<(&str, Vec<Vec<usize>>, usize, Run)> = vec![
        ("matmul 4096", vec![vec![4096, 4096], vec![4096, 4096]], 4096usize.pow(3), matmul()),
        ("matmul 256x784x256", vec![vec![256, 784], vec![784, 256]], 256 * 784 * 256, matmul()),
        ("conv2d 64 3x3", vec![vec![256, 64, 24, 24], vec![64, 64, 3, 3]], 256 * 576 * 64 * 576, conv(1)),
        ("conv2d 64-128 3x3/2", vec![vec![256, 64, 24, 24], vec![128, 64, 3, 3]], 256 * 144 * 128 * 576, conv(2)),
        ("conv2d 512 3x3", vec![vec![256, 512, 3, 3], vec![512, 512, 3, 3]], 256 * 9 * 512 * 4608, conv(1)),
    ];
    let kinds = [
        ("f32", DType::F32, Precision::F32),
        ("tf32", DType::F32, Precision::Tf32),
        ("f16", DType::F16, Precision::F32),
        ("bf16", DType::BF16, Precision::F32),
    ];
    for (name, shapes, products, run) in table {
        let mut group = c.benchmark_group(format!("precisions {name}"));
        group.throughput(Throughput::Elements(products as u64));
        for (kind, dtype, precision) in kinds {
            let input = |s: &Vec<usize>| -> Result<Tensor> {
                let a = Tensor::uniform(0.1, 1.0, s, &gpu)?.cast(dtype)?;
                let a = if s.len() == 4 { Tensor::new(a.array().to_layout(Layout::ChannelsLast)?) } else { a };
                Ok(a.attach_grad())
            };
            let x: Vec<Tensor> = shapes.iter().map(|s| input(s).expect("memory for a bench")).collect();
            group.bench_function(BenchmarkId::from_parameter(kind), |b| {
                b.iter(|| precision::with(precision, || forward_and_backward(&run, &x, &gpu)).expect("the op runs"));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(2));
    targets = ops, precisions
}
criterion_main!(benches);
