//! y and dx: a tile of channels by pixels, summed over taps and channels.

use super::{
    super::{Filters, Gradient, device, mma::Pass, output},
    PHASES, Phase, Sizes, Store,
    axis::{Axis, plane, taps},
    each_last, ends, filters,
    halo::Halo,
    im2col, is_plain_3x3, last, takes, tf32,
    way::{Problem, Way, is_final},
};
use crate::{
    Array, DType, Layout, Result, autograd,
    cpu::conv::ConvShape,
    cuda::Launch,
    ops::{
        moments::Moments,
        six,
        wgmma::{self, Plan, Span, Tile, Work},
    },
};

/// One of the convolutions of a launch: `to` (n, rows, h, w) from `images` (n, channels, …) and the filters.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) s: &'a ConvShape,
    pub(super) to: &'a Array,
    pub(super) images: &'a Array,
    pub(super) filters: &'a Array,
    pub(super) bias: Option<&'a Array>,
}

impl Side<'_> {
    /// Channels written, in each group.
    pub(super) fn rows(&self) -> usize {
        self.to.shape()[1] / self.s.groups
    }

    /// Channels summed over, in each group.
    pub(super) fn channels(&self) -> usize {
        self.images.shape()[1] / self.s.groups
    }
}

/// The number of a side, and its axes.
pub(super) type Term = (usize, [Axis; 2]);

/// Forward pass (0) or data gradient (1) of one convolution or two.
#[derive(Clone, Copy)]
pub(super) struct Images<'a> {
    pub(super) sides: &'a [Side<'a>],
    /// What adds up in the same tiles.
    pub(super) sums: &'a [Vec<Term>],
    pub(super) pass: usize,
    pub(super) store: Store,
}

impl Images<'_> {
    /// Computes all `to`, or answers false where other kernels have to, for which `otherwise` does it once; the result is wanted in
    /// `layout`.
    fn compute(&self, layout: Layout, otherwise: &dyn Fn() -> Result<()>) -> Result<bool> {
        if six::takes(self.sides[0].to)? {
            return self.compute_six();
        }
        let way = self.way(layout, otherwise)?;
        self.run(&way)
    }

    /// The way to take, by the model or the tuner.
    fn way(&self, layout: Layout, otherwise: &dyn Fn() -> Result<()>) -> Result<Way<Halo>> {
        let plain = self.sides.iter().find(|side| is_plain_3x3(side.s));
        let halo = plain.map_or(Ok(None), |side| Halo::new(side.to, side.images.shape()[1]))?;
        let (plan, alone) = (self.plan()?, self.sides.len() == 1);
        let model = if halo.is_some() && !alone { Way::Otherwise } else { Way::fastest(halo, plan) };
        if (halo.is_none() || !alone) && plan.is_none() || is_final()? {
            return Ok(model);
        }
        let all = |plan: &Plan, work: &Work| wgmma::all(plan, self.sides[0].to, Tile::IMAGE, work);
        let plans = plan.map_or(Ok(Vec::new()), |plan| self.work(|work| Ok(all(&plan, work))))?;
        let halos = plain.filter(|_| alone).map_or(Ok(Vec::new()), |side| Halo::all(side.to, side.images.shape()[1]))?;
        let noted = self.store == Store::Noted && autograd::is_training();
        let stored = self.sides.iter().map(|side| side.bias.is_some()).chain([noted, self.store == Store::Added]);
        let arrays: Vec<&Array> = self.sides.iter().flat_map(|side| [side.images, side.filters]).collect();
        let problem = Problem {
            pass: if self.pass == 0 { Pass::Forward } else { Pass::Data },
            store: stored.fold(1, |bits, is| bits * 2 + usize::from(is)),
            arrays: &arrays,
            sides: &self.sides.iter().map(|side| side.s).collect::<Vec<_>>(),
            like: self.sides[0].to,
        };
        problem.tuned(model, (plans, halos), &|way| match way {
            Way::Otherwise => otherwise(),
            way => self.rehearse(way, layout),
        })
    }

    /// Computes it into memory of its own.
    fn rehearse(&self, way: &Way<Halo>, layout: Layout) -> Result<()> {
        // Both sides add up to one dx.
        let fresh = self.sides[..if self.pass == 0 { self.sides.len() } else { 1 }].iter().map(|side| side.to.uninit_like());
        let fresh = fresh.collect::<Result<Vec<_>>>()?;
        let own = |i: usize| Side { to: &fresh[i.min(fresh.len() - 1)], ..self.sides[i] };
        let sides: Vec<Side> = (0..self.sides.len()).map(own).collect();
        Images { sides: &sides, ..*self }.run(way)?;
        fresh.iter().try_for_each(|to| to.to_layout(layout).map(|_| ()))
    }

    /// Whether all `to` have been computed, and are not left to another kernel.
    fn run(&self, way: &Way<Halo>) -> Result<bool> {
        if matches!(way, Way::Otherwise) {
            return Ok(false);
        }
        let images = each_last(self.sides.iter().map(|side| side.images))?;
        // Filters are read as they lie, those that are summed over next to each other or not; tf32 cannot.
        let turns = self.pass == 1 && self.sides[0].to.dtype() == DType::F32;
        let lie = |side: &Side| if turns { tf32::turned(side.filters) } else { last(side.filters) };
        let (filters, pass) = (self.sides.iter().map(lie).collect::<Result<Vec<_>>>()?, if turns { 0 } else { self.pass });
        let own = self.sides.iter().zip(images.iter().zip(&filters));
        let sides: Vec<Side> = own.map(|(side, (images, filters))| Side { images, filters, ..*side }).collect();
        match way {
            Way::Halo(halo) => {
                let Side { to, images, filters, bias, .. } = sides[0];
                halo.run(to, images, (filters, pass), bias, self.store)?;
            }
            Way::Im2col(plan) => {
                let images = Images { sides: &sides, pass, ..*self };
                images.launches(&|sums| images.launch(plan, sums))?;
            }
            Way::Otherwise => {}
        }
        Ok(true)
    }

    /// Whether the copy engine reads the pixels.
    pub(super) fn fits(&self) -> bool {
        let (to, groups) = (self.sides[0].to, self.sides[0].s.groups);
        let size = |a: &Array| [a.shape()[2], a.shape()[3]];
        let fits = |&(of, axes): &Term| axes.iter().zip(size(self.sides[of].images)).all(|(axis, size)| axis.fits(size));
        // A step that is no whole one would go on into the next group's channels.
        let whole = |side: &Side| groups == 1 || side.channels().is_multiple_of(128 / to.dtype().size());
        self.sums.iter().flatten().all(fits) && self.sides.iter().all(whole)
    }

    fn plan(&self) -> Result<Option<Plan>> {
        if !self.fits() {
            return Ok(None);
        }
        self.work(|work| wgmma::plan(self.sides[0].to, Tile::IMAGE, work))
    }

    /// Gives `f` the products.
    pub(super) fn work<T>(&self, f: impl FnOnce(&Work) -> Result<T>) -> Result<T> {
        let (to, groups) = (self.sides[0].to, self.sides[0].s.groups);
        let mut multiplications = 0usize;
        let span = |terms: &Vec<Term>| {
            let (n, m) = (to.shape()[0] * plane(&terms[0].1), self.sides[terms[0].0].rows());
            let steps = |&(of, axes): &Term| {
                let channels = self.sides[of].channels();
                multiplications = multiplications.saturating_add((n * taps(&axes)).saturating_mul(m * channels * groups));
                wgmma::steps(to.dtype(), channels) * taps(&axes)
            };
            Span { m, n, steps: terms.iter().map(steps).sum() }
        };
        let spans: Vec<Span> = self.sums.iter().map(span).collect();
        f(&Work { spans: &spans, batch: groups, multiplications, split: false, products: 1.0 })
    }

    /// Launches with as many phases as one takes.
    pub(super) fn launches(&self, launch: &dyn Fn(&[Vec<Term>]) -> Result<()>) -> Result<()> {
        let mut sums = self.sums;
        while !sums.is_empty() {
            let phases = sums.iter().scan(0, |all, terms| {
                *all += terms.len();
                Some(*all)
            });
            let (now, later) = sums.split_at(phases.take_while(|&all| all <= PHASES).count().max(1));
            launch(now)?;
            sums = later;
        }
        Ok(())
    }

    /// The phases of a launch, how many tiles they have, and its sizes.
    pub(super) fn phases(&self, tile: Tile, sums: &[Vec<Term>]) -> (Vec<Phase>, usize, Sizes) {
        let (first, second) = ends(self.sides);
        let (shape, groups) = (first.to.shape(), first.s.groups);
        let (mut tiles, mut phases) = (0, Vec::new());
        for terms in sums {
            phases.extend(terms.iter().map(|&(of, axes)| Phase { axes, begin: tiles as i32, of: of as i32 }));
            let across = (shape[0] * plane(&terms[0].1)).div_ceil(tile.columns());
            tiles += self.sides[terms[0].0].rows().div_ceil(tile.rows()) * across * groups;
        }
        let channels = |side: &Side| [side.rows(), side.channels(), side.filters.shape()[3]];
        let sizes = Sizes::new(&phases, tiles, [first, second].map(channels), [shape[0], shape[2], shape[3]], groups);
        (phases, tiles, Sizes { adds: (self.store == Store::Added).into(), ..sizes })
    }

    /// Parts of the statistics of side `i` in a launch, if it has any.
    pub(super) fn parts(&self, i: usize, tile: Tile, sums: &[Vec<Term>]) -> Option<usize> {
        let across = |&(_, axes): &Term| (self.sides[0].to.shape()[0] * plane(&axes)).div_ceil(tile.columns()) * tile.across;
        sums.iter().flatten().find(|(of, _)| *of == i).map(across)
    }

    fn launch(&self, plan: &Plan, sums: &[Vec<Term>]) -> Result<()> {
        let (first, second) = ends(self.sides);
        let dtype = first.to.dtype();
        let (phases, tiles, sizes) = self.phases(plan.tile, sums);
        let filters = |side: &Side| filters(side.filters, self.pass, plan.tile.rows());
        let mut launch = Launch::new(first.to, "conv2d_wgmma.cu", "conv2d_wgmma", &plan.defines(dtype, &[("PASS", self.pass)]))?
            .tensor(first.filters, &filters(first))
            .tensor(second.filters, &filters(second));
        for phase in phases.iter().chain(std::iter::repeat(&phases[0])).take(PHASES) {
            let images = self.sides[phase.of as usize].images;
            let pixels = im2col(images, phase.axes, plan.tile.columns());
            launch = launch.tensor(images, &wgmma::swizzled(pixels, dtype));
        }
        let launch = launch.array(first.to).array(second.to).optional(first.bias).optional(second.bias);
        let mut launch = launch.value(sizes);
        let mut all = Vec::new();
        for (i, side) in [first, second].into_iter().enumerate() {
            let parts = self.parts(i, plan.tile, sums);
            // `NOTES` of the kernel.
            let notes = dtype.size() == 2 || plan.resident == 1 || plan.tile.cols < 128;
            let moments = parts.filter(|_| notes).map_or(Ok(None), |parts| self.store.moments(side.to, parts))?;
            launch = Moments::argument(moments.as_ref(), launch);
            all.extend(moments.map(|m| (m, side.to)));
        }
        launch.run(plan.grid(tiles), plan.threads(), plan.shared())?;
        all.into_iter().try_for_each(|(moments, to)| moments.note(to))
    }
}

pub(in crate::ops::conv2d) fn forward(x: &Array, convs: &[Filters]) -> Result<Option<Vec<Array>>> {
    let mut all = Vec::new();
    for (_, _, s) in convs {
        if s.groups != convs[0].2.groups || !takes(x, s)? {
            return Ok(None);
        }
        all.push(Array::uninit(&output(s), x.dtype(), Layout::ChannelsLast, &x.context())?);
    }
    let side = |(&(w, b, s), y)| Side { s, to: y, images: x, filters: w, bias: b };
    let sides: Vec<Side> = convs.iter().zip(&all).map(side).collect();
    let axes = |(i, side): (usize, &Side)| vec![(i, [Axis::forward(side.s, 0), Axis::forward(side.s, 1)])];
    let mut sums: Vec<Vec<Term>> = sides.iter().enumerate().map(axes).collect();
    heavy_first(&mut sums);
    // Where y has to be turned, its elements go elsewhere.
    let store = if x.layout() == Layout::ChannelsLast { Store::Noted } else { Store::Plain };
    let otherwise = || device::forward_otherwise("conv2d", x, convs).map(|_| ());
    let done = Images { sides: &sides, sums: &sums, pass: 0, store }.compute(x.layout(), &otherwise)?;
    done.then(|| all.iter().map(|y| y.to_layout(x.layout())).collect()).transpose()
}

/// Long tiles come first, so that the short ones fill what is left of the device; those without a tap write zeros.
fn heavy_first(sums: &mut [Vec<Term>]) {
    sums.sort_by_key(|terms| std::cmp::Reverse(terms.iter().map(|(_, axes)| taps(axes)).sum::<usize>()));
}

/// dx of one convolution, or the sum of those of two with the same strides, added to what has `arrived` in its place.
pub(in crate::ops::conv2d) fn backward_data(convs: &[Gradient], arrived: Option<&Array>) -> Result<Option<Array>> {
    let (dy, _, s) = convs[0];
    let turns = dy.dtype() == DType::F32 && !six::takes(dy)?;
    // Filters are turned as a whole, not by group.
    if (turns && s.groups > 1) || convs.iter().any(|(_, _, other)| (other.stride, other.groups) != (s.stride, s.groups)) {
        return Ok(None);
    }
    for (_, _, s) in convs {
        if !takes(dy, s)? || arrived.is_some_and(|a| a.dtype() != dy.dtype() || a.shape() != [s.n, s.c, s.h, s.w]) {
            return Ok(None);
        }
    }
    let dx = match arrived {
        Some(sum) => last(sum)?,
        None => Array::uninit(&[s.n, s.c, s.h, s.w], dy.dtype(), Layout::ChannelsLast, &dy.context())?,
    };
    let side = |&(dy, w, s)| Side { s, to: &dx, images: dy, filters: w, bias: None };
    let sides: Vec<Side> = convs.iter().map(side).collect();
    let [down, across] = [s.stride[0].min(s.h), s.stride[1].min(s.w)];
    let phase = |i: usize| {
        let axes = |side: &Side| {
            let axes = [Axis::backward(side.s, 0, i / across), Axis::backward(side.s, 1, i % across)];
            // Turned filters have their taps backwards.
            if turns { [axes[0].turned(side.s.kernel[0]), axes[1].turned(side.s.kernel[1])] } else { axes }
        };
        let mut terms: Vec<Term> = sides.iter().map(axes).enumerate().collect();
        // One without a tap is left where the other has some.
        terms.sort_by_key(|(_, axes)| taps(axes) == 0);
        terms.truncate(terms.iter().filter(|(_, axes)| taps(axes) > 0).count().max(1));
        terms
    };
    let mut sums: Vec<Vec<Term>> = (0..down * across).map(phase).collect();
    heavy_first(&mut sums);
    let store = if arrived.is_some() { Store::Added } else { Store::Plain };
    let otherwise = || device::backward_data_otherwise("conv2d", convs, arrived).map(|_| ());
    let done = Images { sides: &sides, sums: &sums, pass: 1, store }.compute(dy.layout(), &otherwise)?;
    done.then(|| dx.to_layout(dy.layout())).transpose()
}
