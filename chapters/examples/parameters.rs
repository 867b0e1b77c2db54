//! What the exercises ask of parameters: rates and decays of their own, freezing, initializers of their own, and sharing.

use book::Page;
use hadal::{
    Error, Result, Tensor, Trainer,
    autograd::{self, GradReq},
    init::{Constant, Normal},
    loss::L2,
    nn::{Dense, Parameter, Role, Sequential},
    optim::Sgd,
    println,
};

fn main() -> std::process::ExitCode {
    book::run(chapter)
}

fn chapter(page: &Page) -> Result<()> {
    multipliers(page)?;
    shared(page)
}

/// The same net and batch for every case, and the parameters' values before and after a step with lr 0.5 and decay 0.1.
fn step(page: &Page, prepare: impl Fn(&[Parameter])) -> Result<Vec<f64>> {
    let net = Sequential::new().add(Dense::new(3).in_units(2).tanh()).add(Dense::new(1).in_units(3));
    hadal::random::seed(page.seed);
    net.initialize(Normal(0.5), &page.ctx)?;
    let parameters = net.parameters();
    prepare(&parameters);
    let before = parameters.iter().map(|p| p.data()?.copy()).collect::<Result<Vec<_>>>()?;
    let x = Tensor::arange(0.0, 8.0, 1.0, &page.ctx)?.affine(0.25, -1.0)?.reshape(&[4, 2])?;
    let y = Tensor::ones(&[4, 1], &page.ctx)?;
    autograd::record(|| L2::new().forward(&net.forward(&x)?, &y))?.backward()?;
    Trainer::new(net.parameters(), Sgd::new(0.5).weight_decay(0.1)).step(4)?;
    before.iter().zip(&parameters).map(|(b, p)| (p.data()? - b)?.norm(&[])?.item()).collect()
}

fn multipliers(page: &Page) -> Result<()> {
    let weights = |p: &[Parameter], f: &dyn Fn(&Parameter)| p.iter().filter(|p| p.role() == Role::Weight).for_each(f);
    let cases: [(&str, Vec<f64>); 4] = [
        ("as they are", step(page, |_| {})?),
        ("a tenth of the rate for net[0]", step(page, |p| p[..2].iter().for_each(|p| p.set_lr_mult(0.1)))?),
        ("no decay of the weights", step(page, |p| weights(p, &|p| p.set_wd_mult(0.0)))?),
        ("net[0] frozen", step(page, |p| p[..2].iter().for_each(|p| p.set_grad_req(GradReq::Null)))?),
    ];
    println!("how far one step moves the parameters:");
    println!("  {:<32}{:>14}{:>12}{:>14}{:>12}", "", "net[0].weight", ".bias", "net[1].weight", ".bias");
    for (name, moved) in cases {
        println!("  {name:<32}{:>14.5}{:>12.5}{:>14.5}{:>12.5}", moved[0], moved[1], moved[2], moved[3]);
        page.figure(name, "move of net[0].weight", 0, moved[0])?;
    }

    let own = Sequential::new().add(Dense::new(2).in_units(2).weight_init(Constant(7.0))).add(Dense::new(1).in_units(2));
    own.initialize(Constant(1.0), &page.ctx)?;
    for (name, p) in own.collect() {
        println!("{name}: {:?}", p.data()?.to_vec()?);
    }
    Ok(())
}

/// Two layers with one set of parameters: gradients add up, the list and the file have them once.
fn shared(page: &Page) -> Result<()> {
    let layers = || {
        let shared = Dense::new(8).in_units(8).relu();
        let twin = shared.tied().relu();
        Sequential::new().add(Dense::new(8).in_units(4).relu()).add(shared).add(twin).add(Dense::new(10).in_units(8))
    };
    let net = layers();
    net.initialize(Normal(0.5), &page.ctx)?;
    println!("a net whose second and third layer share their parameters:\n{net}");
    let names: Vec<String> = net.collect().into_iter().map(|(name, _)| name).collect();
    println!("its parameters: {}", names.join(", "));

    let x = Tensor::normal(0.0, 1.0, &[2, 4], &page.ctx)?;
    autograd::record(|| net.forward(&x))?.backward()?;
    let sum = net.parameters()[2].grad()?;

    // The same with parameters of their own, which start equal.
    let apart = Sequential::new()
        .add(Dense::new(8).in_units(4).relu())
        .add(Dense::new(8).in_units(8).relu())
        .add(Dense::new(8).in_units(8).relu())
        .add(Dense::new(10).in_units(8));
    apart.initialize(Constant(0.0), &page.ctx)?;
    for (own, i) in apart.parameters().iter().zip([0, 1, 2, 3, 2, 3, 4, 5]) {
        own.set_data(net.parameters()[i].data()?.array())?;
    }
    autograd::record(|| apart.forward(&x))?.backward()?;
    let (first, second) = (apart.parameters()[2].grad()?, apart.parameters()[4].grad()?);
    let off = (&sum - (&first + &second)?)?.abs()?.max(&[])?.item()?;
    let norm = |t: &Tensor| t.norm(&[])?.item();
    println!("gradients of one use and of the other: norms {:.4} and {:.4}", norm(&first)?, norm(&second)?);
    println!("the shared gradient: norm {:.4}; it is their sum within 1e-5: {}", norm(&sum)?, off < 1e-5);

    let file = std::env::temp_dir().join(format!("hadal-parameters-{}.safetensors", std::process::id()));
    net.save(&file)?;
    let other = layers();
    other.load(&file, &page.ctx)?;
    std::fs::remove_file(&file).map_err(|e| Error::invalid("remove", e.to_string()))?;
    println!("loaded from a file, it computes the same: {}", other.forward(&x)?.to_vec()? == net.forward(&x)?.to_vec()?);
    Ok(())
}
