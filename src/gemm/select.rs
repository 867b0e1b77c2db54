//! The one selector: which algorithm computes a GEMM or a pass of a convolution, and by which plan.
//!
//! Each wing keeps an ordered list of algorithms ([`algorithms!`]). Of those that support a call the cheapest plan by the cost models is
//! taken, then the autotuner may replace it by one that it measured, and a test may force one. A launch decides nothing.

use std::{fmt::Debug, sync::Arc};

#[cfg(test)]
use crate::testing::Force;
use crate::{
    Error, Result,
    cuda::{
        Device,
        tune::{self, Choice},
    },
};

/// A better rank is preferred whatever its cost: models of different ranks have not been compared on hardware. Equal ranks compete by
/// their costs.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) enum Rank {
    /// Kernels for one kind of problem.
    Specialised,
    /// wgmma in the operands' own arithmetic.
    Wgmma,
    /// mma.sync, and what emulates f32 on tensor cores.
    TensorCore,
    /// Plain f32 or f64, for everything.
    Simt,
}

/// One way to compute a call: a file of its own, and a line in the list of its wing.
pub(crate) trait Algorithm {
    /// What is computed: operands, shapes, epilogue, device.
    type Call<'a>;
    type Output;
    /// All that a launch needs to know besides the call.
    type Plan: Copy + Debug;
    /// The name in tests.
    const NAME: &'static str;

    /// Whether the kernels can compute it at all; `None` if not.
    fn supports(call: &Self::Call<'_>) -> Result<Option<Rank>>;

    /// Gives `offer` each plan that is worth trying, with the clocks that the model expects.
    fn plans(call: &Self::Call<'_>, offer: &mut dyn FnMut(f64, Self::Plan)) -> Result<()>;

    /// Numbers that tell the call's plans apart, for the autotuner's file.
    fn numbers(plan: &Self::Plan) -> [u32; 4];

    /// Computes the call by one of its plans.
    fn launch(call: &Self::Call<'_>, plan: &Self::Plan) -> Result<Self::Output>;

    /// The plan of a test, which need not be worth it; `None` leaves the call to other algorithms.
    #[cfg(test)]
    fn forced(_call: &Self::Call<'_>, _force: &Force) -> Result<Option<Self::Plan>> {
        Ok(None)
    }
}

/// A plan of one of a list of algorithms; [`algorithms!`] implements it.
pub(crate) trait AnyPlan: Copy + Debug {
    type Call<'a>;
    type Output;

    /// Gives `offers` the plans of all algorithms that support the call, in the list's order.
    fn offer_all(call: &Self::Call<'_>, offers: &mut Offers<Self>) -> Result<()>;

    /// The algorithm's place in the list, and its numbers.
    fn choice(&self) -> Choice;

    /// The algorithm's name.
    #[cfg(test)]
    fn name(&self) -> &'static str;

    fn launch(&self, call: &Self::Call<'_>) -> Result<Self::Output>;

    #[cfg(test)]
    fn forced(call: &Self::Call<'_>, force: &Force) -> Result<Option<Self>>;
}

/// Defines the plans of a list of algorithms: `algorithms!(ConvPlan for ConvCall -> ConvOutputs: FirstLayer, Depthwise);`.
macro_rules! algorithms {
    ($(#[$doc:meta])* $plan:ident for $call:ident -> $output:ty: $($name:ident),* $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        enum $plan {
            $($name(<$name as $crate::gemm::select::Algorithm>::Plan)),*
        }

        impl $crate::gemm::select::AnyPlan for $plan {
            type Call<'a> = $call<'a>;
            type Output = $output;

            fn offer_all(call: &$call<'_>, offers: &mut $crate::gemm::select::Offers<Self>) -> $crate::Result<()> {
                use $crate::gemm::select::Algorithm;
                $(
                    if let Some(rank) = $name::supports(call)?.filter(|&rank| offers.wants(rank, $name::NAME)) {
                        $name::plans(call, &mut |cost, plan| offers.add(rank, cost, $plan::$name(plan)))?;
                    }
                )*
                Ok(())
            }

            fn choice(&self) -> $crate::cuda::tune::Choice {
                use $crate::gemm::select::Algorithm;
                let (name, [a, b, c, d]) = match self {
                    $($plan::$name(plan) => ($name::NAME, $name::numbers(plan))),*
                };
                let place = [$($name::NAME),*].iter().position(|n| *n == name).unwrap_or_default();
                [place as u32, a, b, c, d]
            }

            #[cfg(test)]
            fn name(&self) -> &'static str {
                match self {
                    $($plan::$name(_) => <$name as $crate::gemm::select::Algorithm>::NAME),*
                }
            }

            fn launch(&self, call: &$call<'_>) -> $crate::Result<$output> {
                match self {
                    $($plan::$name(plan) => <$name as $crate::gemm::select::Algorithm>::launch(call, plan)),*
                }
            }

            #[cfg(test)]
            fn forced(call: &$call<'_>, force: &$crate::testing::Force) -> $crate::Result<Option<Self>> {
                use $crate::gemm::select::Algorithm;
                $(
                    if force.algorithms.contains(&$name::NAME) && $name::supports(call)?.is_some() {
                        if let Some(plan) = $name::forced(call, force)? {
                            return Ok(Some($plan::$name(plan)));
                        }
                    }
                )*
                Ok(None)
            }
        }
    };
}
pub(crate) use algorithms;

/// Collects what algorithms offer: the cheapest plan of the best rank, or all plans.
pub(crate) struct Offers<P> {
    best: Option<(Rank, f64, P)>,
    all: Option<Vec<(f64, P)>>,
    /// Algorithms that a test keeps out.
    without: &'static [&'static str],
}

impl<P: AnyPlan> Offers<P> {
    fn new(all: bool, without: &'static [&'static str]) -> Self {
        Offers { best: None, all: all.then(Vec::new), without }
    }

    /// Whether a plan of this rank can still be the one.
    pub(crate) fn wants(&self, rank: Rank, name: &str) -> bool {
        let better = self.all.is_some() || self.best.as_ref().is_none_or(|(best, ..)| rank <= *best);
        better && !self.without.contains(&name)
    }

    /// Of equally cheap plans the first one stays.
    pub(crate) fn add(&mut self, rank: Rank, cost: f64, plan: P) {
        if let Some(all) = &mut self.all {
            all.push((cost, plan));
        }
        if self.best.as_ref().is_none_or(|(best, least, _)| (rank, cost) < (*best, *least)) {
            self.best = Some((rank, cost, plan));
        }
    }
}

/// What the autotuner needs to know of a call.
pub(crate) struct Tuning<'a, P> {
    pub device: &'a Arc<Device>,
    pub family: &'static str,
    /// All that the time depends on.
    pub key: &'a dyn Fn() -> Vec<usize>,
    /// Computes the call by a plan, into memory of its own.
    pub trial: &'a dyn Fn(&P) -> Result<()>,
}

/// The most candidates that are timed.
const CANDIDATES: usize = 16;

/// The plan to compute `call` by.
pub(crate) fn select<P: AnyPlan>(call: &P::Call<'_>, tuning: &Tuning<P>) -> Result<P> {
    let missing = || Error::invalid(tuning.family, "no algorithm supports this call");
    #[cfg(test)]
    if let Some(force) = crate::testing::forced() {
        if let Some(plan) = P::forced(call, &force)? {
            crate::testing::reached(plan.name());
            return Ok(plan);
        }
        let other = cheapest::<P>(call, force.without)?.ok_or_else(missing)?;
        crate::testing::reached(other.name());
        return Ok(other);
    }
    let model = cheapest::<P>(call, &[])?.ok_or_else(missing)?;
    #[cfg(test)]
    crate::testing::reached(model.name());
    if tune::is_off()? {
        return Ok(model);
    }
    let mut offers = Offers::new(true, &[]);
    P::offer_all(call, &mut offers)?;
    let mut all = offers.all.unwrap_or_default();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    // What the model finds hopeless is not worth compiling.
    let most = all.first().map_or(0.0, |(least, _)| least * 2.5);
    let mut few = vec![model];
    for (_, plan) in all.into_iter().filter(|(cost, _)| *cost <= most) {
        if few.len() < CANDIDATES && few.iter().all(|p| p.choice() != plan.choice()) {
            few.push(plan);
        }
    }
    let find = |c: &Choice| few.iter().find(|p| p.choice() == *c).copied().unwrap_or(model);
    let problem = tune::Problem { device: tuning.device, family: tuning.family, shape: &(tuning.key)() };
    let candidates = || few.iter().map(P::choice).collect();
    let choice = tune::choose(&problem, model.choice(), &candidates, &|c| (tuning.trial)(&find(c)))?;
    Ok(find(&choice))
}

/// The cheapest plan by the cost models.
pub(crate) fn cheapest<P: AnyPlan>(call: &P::Call<'_>, without: &'static [&'static str]) -> Result<Option<P>> {
    let mut offers = Offers::new(false, without);
    P::offer_all(call, &mut offers)?;
    Ok(offers.best.map(|(.., plan)| plan))
}
