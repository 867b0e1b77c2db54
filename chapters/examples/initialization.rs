//! The book's section 4.8.2, "Parameter Initialization": initializers against their formulas, and what they do to a deep net.

use book::{
    Page,
    draw::{self, Chart, Curve},
};
use hadal::{
    Result, Tensor, autograd,
    init::{Fan, Init, Msra, Normal, Orthogonal, TruncatedNormal, Uniform, Xavier},
    ops::UnaryKind,
    println,
};
use plotters::prelude::SeriesLabelPosition;

const LAYERS: usize = 12;

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    formulas(page)?;
    // The reasoning behind Xavier's is about layers without activation; tanh is nearly that, relu halves the variance.
    for (name, kind) in [("tanh", UnaryKind::Tanh), ("relu", UnaryKind::Relu)] {
        deep(page, name, kind)?;
    }
    Ok(())
}

/// Mean and deviation of what is drawn, beside the deviation that the formula promises.
fn formulas(page: &Page) -> Result<()> {
    let dense: (&[usize], f64, f64) = (&[256, 784], 784.0, 256.0);
    // In a convolution every place of the window counts as a connection.
    let conv: (&[usize], f64, f64) = (&[64, 32, 3, 3], 32.0 * 9.0, 64.0 * 9.0);
    println!("{:<42}{:>10}{:>12}{:>12}", "initializer", "mean", "sigma", "formula");
    for (what, (shape, n_in, n_out)) in [("dense 784 -> 256", dense), ("3x3 convolution 32 -> 64", conv)] {
        let xavier = (2.0 / (n_in + n_out)).sqrt();
        // A normal cut off at two deviations keeps 0.7737 of its variance.
        let rows: [(&str, Box<dyn Init>, f64); 8] = [
            ("Normal(0.01)", Box::new(Normal(0.01)), 0.01),
            ("default, U[-0.07, 0.07]", Box::new(Uniform::default()), 0.07 / 3f64.sqrt()),
            ("Xavier, uniform", Box::new(Xavier::new()), xavier),
            ("Xavier, gaussian", Box::new(Xavier::new().gaussian()), xavier),
            ("Xavier, fan in", Box::new(Xavier::new().fan(Fan::In)), (1.0 / n_in).sqrt()),
            ("MSRA", Box::new(Msra::new()), (2.0 / n_in).sqrt()),
            ("TruncatedNormal(0.01)", Box::new(TruncatedNormal(0.01)), 0.01 * 0.7737f64.sqrt()),
            ("Orthogonal", Box::new(Orthogonal::new()), (1.0 / n_in.max(shape[0] as f64)).sqrt()),
        ];
        println!("{what}");
        for (name, init, formula) in rows {
            let w = init.values(shape)?;
            let n = w.len() as f64;
            let mean = w.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let sigma = (w.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
            // + 0.0 makes a rounded −0 a 0.
            println!("  {name:<40}{:>10.4}{sigma:>12.5}{formula:>12.5}", (mean * 1e4).round() / 1e4 + 0.0);
            page.figure(&format!("{what}, {name}"), "sigma by formula", 0, sigma / formula)?;
        }
    }
    Ok(())
}

/// The deviations of activations and of gradients, layer by layer.
struct Scales {
    name: &'static str,
    forward: Vec<f64>,
    backward: Vec<f64>,
}

fn deep(page: &Page, activation: &str, kind: UnaryKind) -> Result<()> {
    let width = if page.quick { 128 } else { 512 };
    let inits: [(&str, Box<dyn Init>); 5] = [
        ("Normal(0.01)", Box::new(Normal(0.01))),
        ("U[-0.07, 0.07]", Box::new(Uniform::default())),
        ("Xavier", Box::new(Xavier::new())),
        ("MSRA", Box::new(Msra::new())),
        ("Orthogonal", Box::new(Orthogonal::new())),
    ];
    println!("{LAYERS} layers of {width} with {activation}: sigma of activations and of gradients");
    println!(
        "  {:<20}{:>14}{:>14}{:>16}{:>14}",
        "",
        "h, layer 1",
        format!("layer {LAYERS}"),
        format!("dh, layer {LAYERS}"),
        "layer 1"
    );
    let mut all = Vec::new();
    for (name, init) in inits {
        let s = scales(page, name, &*init, kind, width)?;
        let (h, dh) = (&s.forward, &s.backward);
        println!("  {name:<20}{:>14.2e}{:>14.2e}{:>16.2e}{:>14.2e}", h[0], h[LAYERS - 1], dh[LAYERS - 1], dh[0]);
        page.figure(&format!("{activation}, {name}"), "growth of activations", 0, h[LAYERS - 1] / h[0])?;
        page.figure(&format!("{activation}, {name}"), "growth of gradients", 0, dh[0] / dh[LAYERS - 1])?;
        all.push(s);
    }
    draw::page(page, &format!("initialization_{activation}"), (1360, 600), |root| {
        let of =
            |f: fn(&Scales) -> &Vec<f64>| all.iter().map(|s| Curve::by_epoch(s.name, f(s).iter().copied())).collect::<Vec<_>>();
        let forward = ("activations", "standard deviation of h", of(|s| &s.forward));
        let backward = ("gradients", "standard deviation of dL/dh", of(|s| &s.backward));
        for (part, (title, y, curves)) in root.split_evenly((1, 2)).iter().zip([forward, backward]) {
            let title = format!("{title}, {activation}");
            let chart = Chart { title: &title, x: "layer", y, log: true, legend: SeriesLabelPosition::LowerLeft };
            let chart = if y.contains("dL") { Chart { legend: SeriesLabelPosition::LowerRight, ..chart } } else { chart };
            draw::chart_on(part, &chart, &curves)?;
        }
        Ok(())
    })
}

fn scales(page: &Page, name: &'static str, init: &dyn Init, kind: UnaryKind, width: usize) -> Result<Scales> {
    let shape = [64, width];
    let mut h = Tensor::normal(0.0, 1.0, &shape, &page.ctx)?;
    let head = Tensor::normal(0.0, 1.0, &shape, &page.ctx)?;
    let weights = (0..LAYERS)
        .map(|_| Tensor::from_vec(init.values(&[width, width])?, &[width, width], &page.ctx))
        .collect::<Result<Vec<_>>>()?;
    // Zeros added to each layer's output: their gradients are those of the outputs.
    let taps = (0..LAYERS).map(|_| Ok(Tensor::zeros(&shape, &page.ctx)?.attach_grad())).collect::<Result<Vec<_>>>()?;
    let mut outputs = Vec::new();
    autograd::record(|| -> Result<()> {
        for (w, tap) in weights.iter().zip(&taps) {
            h = (autograd::apply1(hadal::ops::Unary(kind), &[&h.dense(w, None)?])? + tap)?;
            outputs.push(h.detach());
        }
        Ok(())
    })?;
    h.backward_from(&head, false)?;
    let forward = outputs.iter().map(deviation).collect::<Result<_>>()?;
    let backward = taps.iter().map(|t| deviation(&t.grad()?)).collect::<Result<_>>()?;
    Ok(Scales { name, forward, backward })
}

fn deviation(x: &Tensor) -> Result<f64> {
    // In f64: squares of small deviations leave f32's range.
    let x = x.cast(hadal::DType::F64)?;
    (&x - &x.mean(&[])?)?.square()?.mean(&[])?.sqrt()?.item()
}
