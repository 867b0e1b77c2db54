//! Several initializers in one net.

use std::sync::Arc;

use super::Init;
use crate::{Error, Result};

/// The initializer of the first rule whose text is part of the parameter's path, such as `net[0].weight`.
///
/// The empty text is part of every path, so a last rule for `""` is the default. Like any initializer of a net it decides on
/// weights; biases begin at 0, scales at 1.
///
/// ```
/// use hadal::{cpu, init, nn::{Block, Dense, Sequential}};
/// let net = Sequential::new().add(Dense::new(4).in_units(4)).add(Dense::new(2).in_units(4));
/// net.initialize(init::Mixed::new().rule("net[1]", init::One).rule("", init::Orthogonal::new()), &cpu())?;
/// assert_eq!(net.parameters()[2].data()?.to_vec()?, [1.; 8]);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Parameter`] for a path that no rule is for; [`Error::Invalid`] without a path.
#[derive(Clone, Debug, Default)]
pub struct Mixed(Vec<(String, Arc<dyn Init>)>);

impl Mixed {
    /// Without rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// A further rule, which counts where those before it do not.
    pub fn rule(mut self, part: &str, init: impl Init + 'static) -> Self {
        self.0.push((part.to_owned(), Arc::new(init)));
        self
    }
}

impl Init for Mixed {
    fn values(&self, _: &[usize]) -> Result<Vec<f32>> {
        Err(Error::invalid("Mixed", "it goes by the parameter's path: use it in a net's initialize"))
    }

    fn values_for(&self, path: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Some((_, init)) = self.0.iter().find(|(part, _)| path.contains(part)) else {
            let parts: Vec<&str> = self.0.iter().map(|(part, _)| part.as_str()).collect();
            let reason = format!("no rule of Mixed is for it, they are for {parts:?}; a last one for \"\" takes all others");
            return Err(Error::Parameter { name: path.to_owned(), reason });
        };
        init.values_for(path, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{Constant, One, Zero};

    #[test]
    fn the_first_rule_that_fits_counts() {
        let mixed = Mixed::new().rule("[1]", One).rule("conv", Zero).rule("", Constant(2.0));
        for (path, want) in [("net[1].conv.weight", 1.0), ("net[2].conv.weight", 0.0), ("net[3].weight", 2.0)] {
            assert_eq!(mixed.values_for(path, &[2]).unwrap(), [want; 2], "{path}");
        }
        let e = Mixed::new().rule("conv", Zero).values_for("net[3].weight", &[2]).unwrap_err().to_string();
        assert!(e.contains("net[3].weight") && e.contains("[\"conv\"]"), "{e}");
        assert!(mixed.values(&[2]).is_err());
    }
}
