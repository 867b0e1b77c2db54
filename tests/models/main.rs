//! The models: shapes layer by layer, numbers of parameters, first training steps, the registry.

#[path = "../common/mod.rs"]
mod common;

mod blocks;
mod counts;
mod registry;
mod shapes;
mod steps;

use hadal::{
    Result, Tensor, cpu, init,
    models::{self, Options},
    nn::Sequential,
};

/// The model with all shapes settled for samples of `input`. An empty batch computes nothing and asks for no memory but that of
/// the weights, which as zeros are pages that the system never has to provide.
fn settled(name: &str, classes: usize, input: &[usize]) -> Result<Sequential> {
    let net = models::by_name(name, &Options::new(classes))?;
    net.initialize(init::Zero, &cpu())?;
    net.forward(&Tensor::zeros(&[&[0], input].concat(), &cpu())?)?;
    Ok(net)
}
