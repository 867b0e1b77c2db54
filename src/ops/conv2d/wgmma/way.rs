//! The ways in which a pass may be computed, of which the model chooses one, or the tuner.

use super::super::mma::{self, Pass};
use crate::{
    Array, Layout, Result,
    cpu::conv::ConvShape,
    cuda::tune::{self, Choice},
    ops::wgmma::{self, Plan},
};

/// How a pass is computed; `H` is a plan of `conv3x3_wgmma.cu`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<H> {
    /// Pixels come once for each tap, as im2col puts them.
    Im2col(Plan),
    /// Pixels come once, with those around them.
    Halo(H),
    /// Not by wgmma; both sides of a pair one by one.
    Otherwise,
}

/// A plan of `conv3x3_wgmma.cu`.
pub(super) trait Around: Copy {
    /// Clocks that the model expects.
    fn time(&self) -> f64;
    /// Its numbers, not all 0, of which the fourth one is 0.
    fn choice(&self) -> Choice;
}

impl<H: Around> Way<H> {
    /// The fastest by the model.
    pub(super) fn fastest(halo: Option<H>, plan: Option<Plan>) -> Self {
        match (halo, plan) {
            (Some(halo), plan) if plan.is_none_or(|p| halo.time() <= p.time) => Way::Halo(halo),
            (_, Some(plan)) => Way::Im2col(plan),
            (_, None) => Way::Otherwise,
        }
    }

    /// In the tuner's numbers: plans have at least one part.
    fn choice(&self) -> Choice {
        match self {
            Way::Im2col(plan) => plan.choice(),
            Way::Halo(halo) => halo.choice(),
            Way::Otherwise => [0; 5],
        }
    }
}

/// A pass, and all that its time depends on.
pub(super) struct Problem<'a> {
    pub pass: Pass,
    /// How its result is stored, in bits.
    pub store: usize,
    /// What is read, and the result's sizes.
    pub arrays: &'a [&'a Array],
    pub sides: &'a [&'a ConvShape],
    /// An array of the result's dtype.
    pub like: &'a Array,
}

impl Problem<'_> {
    /// The way to take after the tuner had its say; `run` computes the pass in a way, from its arrays as they are, into memory of its
    /// own. `plans` and `halos` are candidates, to which the other kernels are added.
    pub(super) fn tuned<H: Around>(
        &self,
        model: Way<H>,
        (plans, halos): (Vec<Plan>, Vec<H>),
        run: &dyn Fn(&Way<H>) -> Result<()>,
    ) -> Result<Way<H>> {
        // A pair one by one is tuned by itself: before that, nothing better is known than what both take together.
        let least = plans.iter().map(|p| p.time).chain(halos.iter().map(H::time)).fold(f64::INFINITY, f64::min);
        let others = if self.sides.len() > 1 { Some(least) } else { mma::time(self.pass, self.like, self.sides[0])? };
        let mut ways: Vec<(f64, Way<H>)> = plans.into_iter().map(|p| (p.time, Way::Im2col(p))).collect();
        ways.extend(halos.into_iter().map(|h| (h.time(), Way::Halo(h))));
        ways.extend(others.map(|time| (time, Way::Otherwise)));
        let of = |c: &Choice| ways.iter().find(|(_, way)| way.choice() == *c).map_or(model, |(_, way)| *way);
        let all = || ways.iter().map(|(time, way)| (*time, way.choice())).collect();
        let choice = wgmma::pick(self.like, ("conv2d_wgmma", &self.key()), model.choice(), &all, &|c| run(&of(c)))?;
        Ok(of(&choice))
    }

    /// At most 38 numbers: 8, and 13 of each side.
    fn key(&self) -> Vec<usize> {
        let s = self.sides[0];
        let last = |a: &&Array| usize::from(a.layout() == Layout::ChannelsLast);
        let layouts = self.arrays.iter().fold(1, |bits, a| bits * 2 + last(a));
        let mut key = vec![self.pass as usize, self.store, layouts, s.n, s.c, s.h, s.w, s.groups];
        for s in self.sides {
            key.push(s.o);
            key.extend([s.kernel, s.stride, s.dilation].as_flattened().iter().chain(&s.padding));
        }
        key
    }
}

/// Whether the model's choice is final.
pub(super) fn is_final() -> Result<bool> {
    #[cfg(test)]
    if wgmma::forced().is_some() {
        return Ok(true);
    }
    tune::is_off()
}
