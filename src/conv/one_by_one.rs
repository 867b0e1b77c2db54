//! Two convolutions of one input, each by itself: what is left where no algorithm computes both at once, or that costs more.

use super::{ConvCall, ConvOutputs, halo_wgmma::HaloWgmma, mma::Mma, problem::ConvPass, run};
use crate::{
    Result,
    gemm::select::{Algorithm, Rank},
};

#[derive(Clone, Copy, Debug)]
pub(super) struct OneByOne;

/// The clocks of the cheapest plan of an algorithm for one convolution; `None` if it has none.
fn cost<A: for<'a> Algorithm<Call<'a> = ConvCall<'a>>>(call: &ConvCall, i: usize) -> Result<Option<f64>> {
    let one = ConvCall { convs: &call.convs[i..=i], ..*call };
    let mut least: Option<f64> = None;
    if A::supports(&one)?.is_some() {
        A::plans(&one, &mut |cost, _| least = Some(least.map_or(cost, |l| l.min(cost))))?;
    }
    Ok(least)
}

/// The clocks of both by mma.sync, if it computes both.
fn mma_cost(call: &ConvCall) -> Result<Option<f64>> {
    Ok(cost::<Mma>(call, 0)?.zip(cost::<Mma>(call, 1)?).map(|(a, b)| a + b))
}

impl Algorithm for OneByOne {
    type Call<'a> = ConvCall<'a>;
    type Output = ConvOutputs;
    type Plan = ();
    const NAME: &'static str = "one_by_one";

    /// A halo saves more than reading x once for both does: no model compares these. Otherwise two launches of mma.sync are the measure
    /// of what emulates f32 in one.
    fn supports(call: &ConvCall) -> Result<Option<Rank>> {
        if call.convs.len() != 2 {
            return Ok(None);
        }
        let same_3x3 = call.convs.iter().position(|c| c.problem.is_same_3x3());
        if same_3x3.map_or(Ok(None), |i| cost::<HaloWgmma>(call, i))?.is_some() {
            return Ok(Some(Rank::Specialised));
        }
        Ok(Some(if mma_cost(call)?.is_some() { Rank::TensorCore } else { Rank::Simt }))
    }

    fn plans(call: &ConvCall, offer: &mut dyn FnMut(f64, ())) -> Result<()> {
        offer(mma_cost(call)?.unwrap_or(f64::INFINITY), ());
        Ok(())
    }

    fn numbers((): &()) -> [u32; 4] {
        [0; 4]
    }

    fn launch(call: &ConvCall, (): &()) -> Result<ConvOutputs> {
        let mut arrays = Vec::new();
        for i in 0..call.convs.len() {
            arrays.push(run(&ConvCall { convs: &call.convs[i..=i], grad_so_far: None, ..*call })?.single()?);
        }
        if call.pass == ConvPass::Dgrad {
            let mut dx = arrays.remove(0);
            arrays.iter().try_for_each(|other| dx.add_assign(other))?;
            arrays = vec![dx];
        }
        Ok(ConvOutputs::new(arrays))
    }
}
