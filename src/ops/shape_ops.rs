//! Other shapes for the same elements: reshape, flatten, permute, transpose, broadcast_to, tile, repeat.

use super::layout::{Place, copy_box};
use super::reduce::sum_to;
use crate::{
    Array, Error, Layout, Result, Tensor,
    autograd::{Op, Saved, apply1},
    shape::{self, broadcast, broadcast_strides, numel},
};

/// The only input of a one-input op.
pub(super) fn one<'a>(op: &'static str, x: &[&'a Array]) -> Result<&'a Array> {
    match x {
        [x] => Ok(x),
        _ => Err(Error::invalid(op, format!("one input is needed, {} are given", x.len()))),
    }
}

/// The elements in row-major order under another shape of the same size; the gradient is shaped back.
#[derive(Clone, Debug)]
pub struct Reshape {
    /// The new shape.
    pub shape: Vec<usize>,
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let y = one(self.name(), x)?.reshape(&self.shape)?;
        saved.outputs(self.name(), x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        Ok(vec![Some(dy.reshape(saved.shape(0))?)])
    }
}

/// y\[i over the new axes\] = x\[i back in the old order\]; axis d of y is axis `axes[d]` of x.
#[derive(Clone, Debug)]
pub struct Permute {
    /// For each axis of the output, the input's axis.
    pub axes: Vec<usize>,
}

impl Permute {
    fn apply(&self, x: &Array, axes: &[usize]) -> Result<Array> {
        let mut seen = vec![false; x.rank()];
        let known = axes.iter().all(|&a| seen.get_mut(a).is_some_and(|s| !std::mem::replace(s, true)));
        if !known || axes.len() != x.rank() {
            return Err(Error::shape(self.name(), format!("the axes {axes:?} are not each of the input's once"), &[x.shape()]));
        }
        let (extent, stride) = (x.shape(), x.strides());
        let shape: Vec<usize> = axes.iter().map(|&a| extent[a]).collect();
        let mut y = Array::uninit(&shape, x.dtype(), Layout::RowMajor, &x.context())?;
        let from = Place { start: 0, strides: axes.iter().map(|&a| stride[a]).collect() };
        let to = Place::whole(&y);
        copy_box(&mut y, &to, x, &from, &shape)?;
        Ok(y)
    }
}

impl Op for Permute {
    fn name(&self) -> &'static str {
        "permute"
    }

    fn forward(&self, x: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let y = self.apply(one(self.name(), x)?, &self.axes)?;
        saved.outputs(self.name(), x, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        let mut back = vec![0; self.axes.len()];
        for (to, &from) in self.axes.iter().enumerate() {
            back[from] = to;
        }
        Ok(vec![Some(self.apply(dy, &back)?)])
    }
}

/// y = x stretched by numpy's rule; dx sums dy over the stretched axes.
#[derive(Clone, Debug)]
pub struct BroadcastTo {
    /// The shape to stretch to.
    pub shape: Vec<usize>,
}

impl Op for BroadcastTo {
    fn name(&self) -> &'static str {
        "broadcast_to"
    }

    fn forward(&self, inputs: &[&Array], saved: &mut Saved) -> Result<Vec<Array>> {
        let x = one(self.name(), inputs)?;
        if broadcast(self.name(), x.shape(), &self.shape)? != self.shape {
            return Err(Error::shape(self.name(), "the input does not stretch to that shape", &[x.shape(), &self.shape]));
        }
        let x = x.to_layout(Layout::RowMajor)?;
        if x.shape() == self.shape {
            return saved.outputs(self.name(), inputs, vec![x]);
        }
        let mut y = Array::uninit(&self.shape, x.dtype(), Layout::RowMajor, &x.context())?;
        let from = Place { start: 0, strides: broadcast_strides(x.shape(), &self.shape) };
        let to = Place::whole(&y);
        copy_box(&mut y, &to, &x, &from, &self.shape)?;
        saved.outputs(self.name(), inputs, vec![y])
    }

    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let [dy] = saved.gradients(self.name(), dy)?;
        Ok(vec![Some(sum_to(dy, saved.shape(0))?)])
    }
}

impl Tensor {
    /// The same elements in row-major order under another shape; one extent may be −1 and is worked out.
    ///
    /// The book's section "Data Manipulation".
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of elements does not fit, an extent is below −1, or −1 stands twice.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 12.0, 1.0, &cpu())?;
    /// assert_eq!(x.reshape(&[3, -1])?.shape(), [3, 4]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "view")]
    pub fn reshape(&self, shape: &[isize]) -> Result<Tensor> {
        let own = self.shape();
        let refuse = |reason: String| Error::shape("reshape", reason, &[&own]);
        let known = shape.iter().filter(|&&e| e != -1).try_fold(1usize, |n, &e| n.checked_mul(usize::try_from(e).ok()?));
        let known = known.ok_or_else(|| refuse(format!("{shape:?} is no shape")))?;
        let missing = match shape.iter().filter(|&&e| e == -1).count() {
            0 => 0,
            1 if known > 0 && numel(&own).is_multiple_of(known) => numel(&own) / known,
            1 => return Err(refuse(format!("no extent in the place of -1 makes {shape:?} hold {} elements", numel(&own)))),
            _ => return Err(refuse(format!("-1 stands more than once in {shape:?}"))),
        };
        let shape = shape.iter().map(|&e| usize::try_from(e).unwrap_or(missing)).collect();
        apply1(Reshape { shape }, &[self])
    }

    /// [`Tensor::reshape`] to a shape whose extents are all known, such as another tensor's.
    pub fn reshape_as(&self, shape: &[usize]) -> Result<Tensor> {
        apply1(Reshape { shape: shape.to_vec() }, &[self])
    }

    /// All axes but the first joined: (N, C, H, W) becomes (N, C·H·W); a scalar becomes (1, 1).
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// assert_eq!(Tensor::zeros(&[2, 1, 28, 28], &cpu())?.flatten()?.shape(), [2, 784]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn flatten(&self) -> Result<Tensor> {
        let shape = self.shape();
        let (n, rest) = shape.split_first().map_or((1, &[][..]), |(&n, rest)| (n, rest));
        self.reshape_as(&[n, numel(rest)])
    }

    /// A new axis of extent 1 at `axis` of the result, which may count from the end.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::zeros(&[2, 3], &cpu())?;
    /// assert_eq!(x.expand_dims(1)?.shape(), [2, 1, 3]);
    /// assert_eq!(x.expand_dims(-1)?.shape(), [2, 3, 1]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "newaxis")]
    pub fn expand_dims(&self, axis: isize) -> Result<Tensor> {
        let mut shape = self.shape();
        let at = shape::axis("expand_dims", axis, shape.len() + 1)?;
        shape.insert(at, 1);
        self.reshape_as(&shape)
    }

    /// [`Tensor::expand_dims`] under PyTorch's name.
    pub fn unsqueeze(&self, axis: isize) -> Result<Tensor> {
        self.expand_dims(axis)
    }

    /// Without the named axes, each of which must have extent 1; an empty list removes all such axes.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::zeros(&[1, 3, 1], &cpu())?;
    /// assert_eq!(x.squeeze(&[])?.shape(), [3]);
    /// assert_eq!(x.squeeze(&[-1])?.shape(), [1, 3]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn squeeze(&self, axes: &[isize]) -> Result<Tensor> {
        let shape = self.shape();
        let named = if axes.is_empty() { Vec::new() } else { shape::axes("squeeze", axes, shape.len())? };
        if named.iter().any(|&a| shape[a] != 1) {
            return Err(Error::shape("squeeze", format!("an axis of {axes:?} has another extent than 1"), &[&shape]));
        }
        let stays = |i: usize, e: usize| if axes.is_empty() { e != 1 } else { !named.contains(&i) };
        let left: Vec<usize> = shape.iter().enumerate().filter(|&(i, &e)| stays(i, e)).map(|(_, &e)| e).collect();
        self.reshape_as(&left)
    }

    /// Stretched to `shape` by numpy's rule: aligned at the end, an extent of 1 repeats.
    ///
    /// # Errors
    /// [`Error::Shape`] when an extent is neither 1 nor that of `shape`.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![1f32, 2.], &[2, 1], &cpu())?;
    /// assert_eq!(x.broadcast_to(&[2, 3])?.to_vec()?, [1., 1., 1., 2., 2., 2.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "expand")]
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Tensor> {
        apply1(BroadcastTo { shape: shape.to_vec() }, &[self])
    }

    /// The axes in reverse order; a matrix becomes Aᵀ.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::arange(0.0, 6.0, 1.0, &cpu())?.reshape(&[2, 3])?;
    /// assert_eq!(x.transpose()?.to_vec()?, [0., 3., 1., 4., 2., 5.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn transpose(&self) -> Result<Tensor> {
        apply1(Permute { axes: (0..self.rank()).rev().collect() }, &[self])
    }

    /// The axes in another order: axis d of the result is axis `axes[d]` of this tensor.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::zeros(&[2, 3, 4], &cpu())?;
    /// assert_eq!(x.permute(&[2, 0, 1])?.shape(), [4, 2, 3]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn permute(&self, axes: &[isize]) -> Result<Tensor> {
        let axes = axes.iter().map(|&a| shape::axis("permute", a, self.rank())).collect::<Result<_>>()?;
        apply1(Permute { axes }, &[self])
    }

    /// Two axes exchanged.
    #[doc(alias("swapaxes", "movedim"))]
    pub fn swap_axes(&self, a: isize, b: isize) -> Result<Tensor> {
        let rank = self.rank();
        let (a, b) = (shape::axis("swap_axes", a, rank)?, shape::axis("swap_axes", b, rank)?);
        let mut axes: Vec<usize> = (0..rank).collect();
        axes.swap(a, b);
        apply1(Permute { axes }, &[self])
    }

    /// The whole tensor `counts[d]` times along each axis d; counts and shape are aligned at the end.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![1f32, 2.], &[2], &cpu())?;
    /// assert_eq!(x.tile(&[2, 2])?.to_vec()?, [1., 2., 1., 2., 1., 2., 1., 2.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    pub fn tile(&self, counts: &[usize]) -> Result<Tensor> {
        let own = self.shape();
        let rank = own.len().max(counts.len());
        let at = |list: &[usize], d: usize| (d + list.len()).checked_sub(rank).map_or(1, |i| list[i]);
        // (e₀, e₁) with counts (c₀, c₁) is (1, e₀, 1, e₁) stretched to (c₀, e₀, c₁, e₁) and joined in pairs.
        let pairs = |count: &dyn Fn(usize) -> usize| (0..rank).flat_map(|d| [count(d), at(&own, d)]).collect::<Vec<_>>();
        let too_large = || Error::shape("tile", format!("{counts:?} copies are too many"), &[&own]);
        let joined: Option<Vec<usize>> = (0..rank).map(|d| at(counts, d).checked_mul(at(&own, d))).collect();
        let joined = joined.ok_or_else(too_large)?;
        self.reshape_as(&pairs(&|_| 1))?.broadcast_to(&pairs(&|d| at(counts, d)))?.reshape_as(&joined)
    }

    /// Each slice along `axis` `count` times in a row.
    ///
    /// ```
    /// use hadal::{Tensor, cpu};
    /// let x = Tensor::from_vec(vec![1f32, 2.], &[2], &cpu())?;
    /// assert_eq!(x.repeat(2, 0)?.to_vec()?, [1., 1., 2., 2.]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[doc(alias = "repeat_interleave")]
    pub fn repeat(&self, count: usize, axis: isize) -> Result<Tensor> {
        let mut shape = self.shape();
        let axis = shape::axis("repeat", axis, shape.len())?;
        let joined = shape[axis].checked_mul(count);
        let joined = joined.ok_or_else(|| Error::shape("repeat", format!("{count} copies are too many"), &[&shape]))?;
        let (mut thin, mut wide) = (shape.clone(), shape.clone());
        thin.insert(axis + 1, 1);
        wide.insert(axis + 1, count);
        shape[axis] = joined;
        self.reshape_as(&thin)?.broadcast_to(&wide)?.reshape_as(&shape)
    }
}
