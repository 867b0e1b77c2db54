//! Convolution as implicit GEMM on wgmma, whose pixels TMA gathers as im2col does: launches of `kernels/conv2d_wgmma.cu`. A launch
//! computes one convolution or two of the same x, and all phases of a strided dgrad.

use super::{
    ConvCall, ConvOperands, ConvOutputs,
    halo_wgmma::rank,
    im2col_wgrad,
    phases::{Axis, plane, taps},
    problem::ConvPass,
    wgmma_params::{
        ConvEpilogue, ConvPhase, PHASES, WgmmaConvParams, all_to_nhwc, can_accumulate, dx_nhwc, filters, filters_for,
        first_and_last, im2col, tma_reads,
    },
};
use crate::{
    Array, DType, Layout, Result,
    cuda::Launch,
    gemm::{
        bn_stats::BnPartials,
        model::{
            wgmma::{self, GemmShape, GroupedGemm, WgmmaPlan, plans},
            wgmma_tile::WgmmaTile,
        },
        select::{Algorithm, Rank},
    },
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Im2colWgmma;

/// One convolution's part of a phase: the number of the convolution, and its axes.
pub(super) type PhaseTerm = (usize, [Axis; 2]);

/// Fprop or dgrad as a grouped GEMM: channels written by pixels, summed over channels and taps.
pub(super) struct ImplicitGemm<'a> {
    call: &'a ConvCall<'a>,
    /// Each group of tiles, and the terms that add up in it.
    pub(super) phases: Vec<Vec<PhaseTerm>>,
}

impl<'a> ImplicitGemm<'a> {
    /// `None` for two convolutions that one launch does not compute, and where TMA's im2col cannot express the pixels.
    pub(super) fn new(call: &'a ConvCall<'a>, read_as: DType) -> Option<Self> {
        let first = call.convs[0].problem;
        let alike = |c: &ConvOperands| {
            c.problem.groups == first.groups && (call.pass == ConvPass::Fprop || c.problem.stride == first.stride)
        };
        let reads = call.convs.iter().all(|c| alike(c) && tma_reads(c.problem, read_as)) && can_accumulate(call);
        // Filters of f32 are flipped as a whole, not by group.
        let flips = is_flipped(call, read_as);
        if !reads || (flips && first.groups > 1) {
            return None;
        }
        let mut phases = if call.pass == ConvPass::Fprop { fprop_phases(call) } else { dgrad_phases(call, flips) };
        // Long tiles come first, so that the short ones fill what is left of the device; those without a tap write zeros.
        phases.sort_by_key(|terms| std::cmp::Reverse(terms.iter().map(|(_, axes)| taps(axes)).sum::<usize>()));
        let own = ImplicitGemm { call, phases };
        own.is_expressible().then_some(own)
    }

    /// The shape of the images written by convolution `i`, and the channels that they are summed over in each group.
    fn written(&self, i: usize) -> ([usize; 4], usize) {
        let p = self.call.convs[i].problem;
        match self.call.pass {
            ConvPass::Dgrad => (p.x_shape(), p.o / p.groups),
            _ => (p.y_shape(), p.c / p.groups),
        }
    }

    fn groups(&self) -> usize {
        self.call.convs[0].problem.groups
    }

    /// Channels written by convolution `i` in each group.
    fn rows(&self, i: usize) -> usize {
        self.written(i).0[1] / self.groups()
    }

    /// Whether TMA's im2col maps hold corners, offsets and steps.
    fn is_expressible(&self) -> bool {
        let size = |i: usize| [self.call.convs[i].a.shape()[2], self.call.convs[i].a.shape()[3]];
        let fits = |&(of, axes): &PhaseTerm| axes.iter().zip(size(of)).all(|(axis, size)| axis.fits(size));
        // A step that is no whole one would read on into the next group's channels.
        let step = 128 / self.call.dtype().size();
        let whole = |i: usize| self.groups() == 1 || self.written(i).1.is_multiple_of(step);
        self.phases.iter().flatten().all(fits) && (0..self.call.convs.len()).all(whole)
    }

    /// Gives `f` the grouped GEMM, with steps of the main loop as wgmma takes them.
    pub(super) fn group<T>(&self, f: impl FnOnce(&GroupedGemm) -> T) -> T {
        let (groups, mut macs) = (self.groups(), 0usize);
        let shape = |terms: &Vec<PhaseTerm>| {
            let (images, m) = (self.written(terms[0].0).0[0], self.rows(terms[0].0));
            let n = images * plane(&terms[0].1);
            let steps = |&(of, axes): &PhaseTerm| {
                let channels = self.written(of).1;
                macs = macs.saturating_add((n * taps(&axes)).saturating_mul(m * channels * groups));
                wgmma::steps(self.call.dtype(), channels) * taps(&axes)
            };
            GemmShape { m, n, k_steps: terms.iter().map(steps).sum() }
        };
        let shapes: Vec<GemmShape> = self.phases.iter().map(shape).collect();
        f(&GroupedGemm { shapes: &shapes, batch: groups, macs, can_split_k: false, products: 1.0 })
    }

    /// Memory for the results in NHWC: a y of each convolution, or one dx.
    pub(super) fn results(&self) -> Result<Vec<Array>> {
        match self.call.pass {
            ConvPass::Fprop => self.call.convs.iter().map(|c| self.call.uninit(c, Layout::ChannelsLast)).collect(),
            _ => Ok(vec![dx_nhwc(self.call, &self.call.convs[0])?]),
        }
    }

    /// Launches with as many phases as one takes.
    pub(super) fn launches(&self, launch: &dyn Fn(&[Vec<PhaseTerm>]) -> Result<()>) -> Result<()> {
        let mut rest = &self.phases[..];
        while !rest.is_empty() {
            let counts = rest.iter().scan(0, |all, terms| {
                *all += terms.len();
                Some(*all)
            });
            let (now, later) = rest.split_at(counts.take_while(|&all| all <= PHASES).count().max(1));
            launch(now)?;
            rest = later;
        }
        Ok(())
    }

    /// The phases of a launch, how many tiles they have, and its parameters.
    pub(super) fn params(&self, tile: WgmmaTile, phases: &[Vec<PhaseTerm>]) -> (Vec<ConvPhase>, usize, WgmmaConvParams) {
        let ([n, _, h, w], groups) = (self.written(0).0, self.groups());
        let (mut tiles, mut all) = (0, Vec::new());
        for terms in phases {
            all.extend(terms.iter().map(|&(of, axes)| ConvPhase { axes, begin: tiles as i32, of: of as i32 }));
            let across = (n * plane(&terms[0].1)).div_ceil(tile.columns());
            tiles += self.rows(terms[0].0).div_ceil(tile.rows()) * across * groups;
        }
        let last = self.call.convs.len() - 1;
        let channels = |i: usize| [self.rows(i), self.written(i).1, self.call.convs[i].problem.kernel[1]];
        let params = WgmmaConvParams::new(&all, tiles, [channels(0), channels(last)], [n, h, w], groups);
        let accumulate = (ConvEpilogue::of(self.call) == ConvEpilogue::AddTo).into();
        (all, tiles, WgmmaConvParams { accumulate, ..params })
    }

    /// Adds the statistics of both convolutions to a launch if the kernel `keeps` them, runs it, and attaches them to the results.
    pub(super) fn run_with_stats(
        &self,
        mut launch: Launch,
        (tile, keeps): (WgmmaTile, bool),
        phases: &[Vec<PhaseTerm>],
        (first, last): (&Array, &Array),
        (grid, block, smem): ([u32; 3], [u32; 3], u32),
    ) -> Result<()> {
        let mut all = Vec::new();
        for (i, to) in [first, last].into_iter().enumerate() {
            let across = |&(_, axes): &PhaseTerm| (to.shape()[0] * plane(&axes)).div_ceil(tile.columns()) * tile.wg_n;
            let parts = phases.iter().flatten().find(|(of, _)| *of == i).map(across);
            let stats = parts.filter(|_| keeps).map_or(Ok(None), |parts| ConvEpilogue::of(self.call).bn_partials(to, parts))?;
            launch = BnPartials::argument(stats.as_ref(), launch);
            all.extend(stats.map(|s| (s, to)));
        }
        launch.run(grid, block, smem)?;
        all.into_iter().try_for_each(|(stats, to)| stats.attach(to))
    }

    /// The results of all launches, in the call's layout.
    pub(super) fn outputs(&self, results: &[Array]) -> Result<ConvOutputs> {
        let arrays = results.iter().map(|to| to.to_layout(self.call.layout())).collect::<Result<_>>()?;
        let accumulated = ConvEpilogue::of(self.call) == ConvEpilogue::AddTo;
        Ok(ConvOutputs { accumulated, ..ConvOutputs::new(arrays) })
    }
}

/// Whether dgrad reads flipped filters: TF32 operands lie along k.
fn is_flipped(call: &ConvCall, read_as: DType) -> bool {
    call.pass == ConvPass::Dgrad && read_as == DType::F32
}

fn fprop_phases(call: &ConvCall) -> Vec<Vec<PhaseTerm>> {
    let axes = |(i, c): (usize, &ConvOperands)| vec![(i, [Axis::fprop(c.problem, 0), Axis::fprop(c.problem, 1)])];
    call.convs.iter().enumerate().map(axes).collect()
}

/// Pixels of dx with the same remainders by the stride, which meet the same taps.
fn dgrad_phases(call: &ConvCall, flips: bool) -> Vec<Vec<PhaseTerm>> {
    let s = call.convs[0].problem;
    let [down, across] = [s.stride[0].min(s.h), s.stride[1].min(s.w)];
    let phase = |i: usize| {
        let axes = |c: &ConvOperands| {
            let axes = [Axis::dgrad(c.problem, 0, i / across), Axis::dgrad(c.problem, 1, i % across)];
            // Flipped filters have their taps backwards.
            let [kh, kw] = c.problem.kernel;
            if flips { [axes[0].flipped(kh), axes[1].flipped(kw)] } else { axes }
        };
        let mut terms: Vec<PhaseTerm> = call.convs.iter().map(axes).enumerate().collect();
        // Drop terms without taps, but keep at least one.
        terms.sort_by_key(|(_, axes)| taps(axes) == 0);
        terms.truncate(terms.iter().filter(|(_, axes)| taps(axes) > 0).count().max(1));
        terms
    };
    (0..down * across).map(phase).collect()
}

impl Algorithm for Im2colWgmma {
    type Call<'a> = ConvCall<'a>;
    type Output = ConvOutputs;
    type Plan = WgmmaPlan;
    const NAME: &'static str = "im2col_wgmma";

    fn supports(call: &ConvCall) -> Result<Option<Rank>> {
        if !call.arch.wgmma_multiplies(call.dtype(), call.precision) {
            return Ok(None);
        }
        let is_ours = match call.pass {
            ConvPass::Wgrad => im2col_wgrad::axes(call, call.dtype()).is_some(),
            _ => ImplicitGemm::new(call, call.dtype()).is_some(),
        };
        Ok(is_ours.then_some(rank(call)))
    }

    fn plans(call: &ConvCall, offer: &mut dyn FnMut(f64, WgmmaPlan)) -> Result<()> {
        let (num_sms, size) = (call.arch.num_sms, call.dtype().size());
        if call.pass == ConvPass::Wgrad {
            im2col_wgrad::group(call, call.dtype(), |g| plans(num_sms, size, WgmmaTile::IM2COL_WGRAD, g, offer));
        } else if let Some(gemm) = ImplicitGemm::new(call, call.dtype()) {
            gemm.group(|g| plans(num_sms, size, WgmmaTile::IM2COL, g, offer));
        }
        Ok(())
    }

    fn numbers(plan: &WgmmaPlan) -> [u32; 4] {
        plan.numbers()
    }

    #[cfg(test)]
    fn forced(call: &ConvCall, force: &crate::testing::Force) -> Result<Option<WgmmaPlan>> {
        let num_sms = call.arch.num_sms;
        if call.pass == ConvPass::Wgrad {
            let forced = |g: &GroupedGemm| WgmmaPlan::forced(force, WgmmaTile::IM2COL_WGRAD, g, num_sms);
            return Ok(im2col_wgrad::group(call, call.dtype(), forced));
        }
        let gemm = ImplicitGemm::new(call, call.dtype());
        Ok(gemm.map(|gemm| gemm.group(|g| WgmmaPlan::forced(force, WgmmaTile::IM2COL, g, num_sms))))
    }

    fn launch(call: &ConvCall, plan: &WgmmaPlan) -> Result<ConvOutputs> {
        if call.pass == ConvPass::Wgrad {
            return im2col_wgrad::launch(call, plan);
        }
        let Some(gemm) = ImplicitGemm::new(call, call.dtype()) else { return Err(call.unsupported()) };
        let results = gemm.results()?;
        let images = all_to_nhwc(call.convs.iter().map(|c| c.a))?;
        let lying = call.convs.iter().map(|c| filters_for(call, c.b)).collect::<Result<Vec<_>>>()?;
        let pass = lying[0].1;
        let map = |w: &Array| filters(w, pass, plan.tile.rows());
        let ((w0, _), (w1, _)) = first_and_last(&lying);
        let ((y0, y1), (c0, c1)) = (first_and_last(&results), first_and_last(call.convs));
        let define = plan.defines(call.dtype(), &[("PASS", pass)]);
        // `NOTES` of the kernel: two CTAs of f32 have no registers left for statistics.
        let keeps = call.dtype().size() == 2 || plan.ctas_per_sm == 1 || plan.tile.wg_tile_n < 128;
        gemm.launches(&|phases| {
            let (all, tiles, params) = gemm.params(plan.tile, phases);
            let mut launch =
                Launch::new(y0, "conv2d_wgmma.cu", "conv2d_wgmma", &define)?.tensor(w0, &map(w0)).tensor(w1, &map(w1));
            for phase in all.iter().chain(std::iter::repeat(&all[0])).take(PHASES) {
                let images = &images[phase.of as usize];
                launch = launch.tensor(images, &wgmma::swizzled(im2col(images, phase.axes, plan.tile.columns()), call.dtype()));
            }
            let launch = launch.array(y0).array(y1).optional(c0.bias).optional(c1.bias).value(params);
            gemm.run_with_stats(
                launch,
                (plan.tile, keeps),
                phases,
                (y0, y1),
                (plan.grid(tiles), plan.threads(), plan.smem_bytes()),
            )
        })?;
        gemm.outputs(&results)
    }
}
