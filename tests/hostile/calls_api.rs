//! What [`crate::calls`] calls: one call of the public API, chosen and given its arguments by random numbers.

use hadal::{
    Array, DType, Layout, Result, Tensor, Trainer, autograd, check, cpu, d2l,
    data::{DataLoader, ImageSet, LastBatch, ResizePlan, Sampler, permutation},
    init::{self, Init},
    loss, models, nn,
    ops::{Conv2dOptions, PoolOptions, UnaryKind},
    optim, shape,
};

use crate::cases::Rng;

/// Sizes at which arithmetic goes wrong.
const ABSURD: [usize; 16] = [
    0,
    1 << 16,
    1 << 20,
    (1 << 20) + 1,
    2_000_000,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 32) + 1,
    1 << 40,
    1 << 62,
    isize::MAX as usize,
    1 << 63,
    usize::MAX - 1,
    usize::MAX,
];
const VALUES: [f64; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.0,
    3.0,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    1e-40,
    1e-300,
    3e38,
    1e300,
    65504.0,
    -9.3e18,
];
const DTYPES: [DType; 6] = [DType::F32, DType::F64, DType::F16, DType::BF16, DType::U8, DType::I64];
/// Tensors of random values have at most so many elements.
const MOST: usize = 1 << 16;

/// Makes a call; `bytes` is what its arrays hold, arguments and results.
pub struct Caller {
    pub rng: Rng,
    pub name: String,
    pub bytes: usize,
}

impl Caller {
    pub fn new(rng: Rng) -> Self {
        Caller { rng, name: String::new(), bytes: 0 }
    }

    fn small(&mut self) -> usize {
        *self.rng.of(&[0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33])
    }

    /// Mostly a few, sometimes absurd.
    fn size(&mut self) -> usize {
        if self.rng.one_in(6) { *self.rng.of(&ABSURD) } else { self.small() }
    }

    fn sizes(&mut self, most: usize) -> Vec<usize> {
        (0..self.rng.below(most + 1)).map(|_| self.size()).collect()
    }

    fn small_shape(&mut self) -> Vec<usize> {
        (0..*self.rng.of(&[0, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 7])).map(|_| self.small()).collect()
    }

    fn axis(&mut self) -> isize {
        if self.rng.one_in(12) {
            *self.rng.of(&[isize::MIN, isize::MAX, -(1 << 31), 1 << 31, 100, -100])
        } else {
            self.rng.below(10) as isize - 5
        }
    }

    fn axes(&mut self) -> Vec<isize> {
        (0..self.rng.below(4)).map(|_| self.axis()).collect()
    }

    fn value(&mut self) -> f64 {
        if self.rng.one_in(3) { *self.rng.of(&VALUES) } else { self.rng.below(2001) as f64 / 500.0 - 2.0 }
    }

    fn dtype(&mut self) -> DType {
        if self.rng.one_in(3) { *self.rng.of(&DTYPES) } else { DType::F32 }
    }

    /// A range inside of 0..n, or not.
    fn range(&mut self, n: usize) -> std::ops::Range<usize> {
        if self.rng.one_in(5) {
            return self.size()..self.size();
        }
        let (a, b) = (self.rng.below(n + 1), self.rng.below(n + 1));
        a.min(b)..a.max(b)
    }

    /// A tensor of a shape that is absurd now and then: empty with extents beside the 0, or long.
    fn tensor(&mut self) -> Result<Tensor> {
        let mut s = self.small_shape();
        if self.rng.one_in(8) && !s.is_empty() {
            let i = self.rng.below(s.len());
            s[i] = *self.rng.of(&ABSURD);
            if self.rng.one_in(2) {
                let i = self.rng.below(s.len());
                s[i] = 0;
            }
        }
        self.tensor_of(&s)
    }

    fn tensor_of(&mut self, s: &[usize]) -> Result<Tensor> {
        let dtype = self.dtype();
        self.tensor_as(s, dtype)
    }

    fn tensor_as(&mut self, s: &[usize], dtype: DType) -> Result<Tensor> {
        let n = shape::numel(s);
        let a = if n <= MOST && n > 0 {
            // A few values, repeated: the sizes are what is absurd here.
            let some: Vec<f64> = (0..16).map(|_| self.value()).collect();
            let values: Vec<f64> = (0..n).map(|i| some[(i + i / 16) % 16]).collect();
            Array::from_vec(values, s, &cpu())?.cast(dtype)?
        } else {
            Array::full(s, self.value(), dtype, &cpu())?
        };
        let a = if a.rank() == 4 && self.rng.one_in(3) { a.to_layout(Layout::ChannelsLast)? } else { a };
        self.bytes += a.len() * 8;
        let t = Tensor::new(a);
        Ok(if self.rng.one_in(2) { t.attach_grad() } else { t })
    }

    /// A shape that goes with `s`, more or less: the same, stretched, a suffix, another one.
    fn beside(&mut self, s: &[usize]) -> Vec<usize> {
        let mut t = s.to_vec();
        match self.rng.below(8) {
            0..=2 => {}
            3 | 4 => t.iter_mut().for_each(|e| *e = if self.rng.one_in(2) { 1 } else { *e }),
            5 => t = t.split_off(self.rng.below(t.len() + 1)),
            6 if !t.is_empty() => {
                let i = self.rng.below(t.len());
                t[i] = self.size();
            }
            _ => t = self.small_shape(),
        }
        t
    }

    fn pair(&mut self) -> Result<(Tensor, Tensor)> {
        let a = self.tensor()?;
        let s = self.beside(&a.shape());
        let dtype = if self.rng.one_in(8) { self.dtype() } else { a.dtype() };
        let b = self.tensor_as(&s, dtype)?;
        Ok((a, b))
    }

    /// Images and filters of shapes that fit, mostly.
    fn images(&mut self) -> Result<(Tensor, Tensor)> {
        let groups = if self.rng.one_in(4) { self.small() } else { 1 };
        let (n, cg, og) = (self.small().min(4), self.small(), self.small());
        let side = |c: &mut Self| if c.rng.one_in(10) { c.size() } else { c.small() };
        let dtype = *self.rng.of(&[DType::F32, DType::F32, DType::F64, DType::BF16]);
        let (h, w, kh, kw) = (side(self), side(self), side(self), side(self));
        let x = self.tensor_as(&[n, cg * groups, h, w], dtype)?;
        let w = self.tensor_as(&[og * groups, cg, kh, kw], dtype)?;
        Ok((x, w))
    }

    fn conv(&mut self) -> Conv2dOptions {
        let attribute = |c: &mut Self| if c.rng.one_in(8) { c.size() } else { 1 + c.rng.below(3) };
        Conv2dOptions::new()
            .stride([attribute(self), attribute(self)])
            .padding([attribute(self).saturating_sub(1), self.rng.below(4), self.small(), attribute(self).saturating_sub(1)])
            .dilation([attribute(self), attribute(self)])
            .groups(if self.rng.one_in(3) { self.small() } else { 1 })
    }

    fn pool(&mut self) -> PoolOptions {
        let p = PoolOptions::new([self.size(), self.size()]).ceil_mode(self.rng.one_in(2)).count_include_pad(self.rng.one_in(2));
        let p = if self.rng.one_in(2) { p.stride([self.size(), self.size()]) } else { p };
        if self.rng.one_in(2) { p.padding([self.size(), self.size()]) } else { p }
    }

    /// What users do with a result: read it, print it, go backward from it.
    fn used(&mut self, y: Tensor) -> Result<()> {
        self.bytes += y.size() * 8;
        if self.rng.one_in(4) {
            y.to_vec()?;
        }
        if self.rng.one_in(6) {
            let _ = format!("{y}");
        }
        if autograd::is_recording() {
            match self.rng.below(4) {
                0 => drop(y.backward_retain().and_then(|()| y.backward())),
                1 => {
                    let dy = self.tensor_as(&y.shape(), y.dtype())?;
                    let _ = y.backward_from(&dy, false);
                }
                _ => drop(y.backward()),
            }
        }
        Ok(())
    }

    fn named(&mut self, name: &str) {
        self.name = name.to_owned();
    }

    /// The call.
    pub fn call(&mut self) -> Result<()> {
        let y = match self.rng.below(10) {
            0 => self.create(),
            1 => self.shapes(),
            2 => self.elementwise(),
            3 => self.binary(),
            4 => self.reduce(),
            5 => self.index(),
            6 => self.products(),
            7 => self.windows(),
            8 => self.normal(),
            _ => return self.rest(),
        }?;
        self.used(y)
    }

    fn create(&mut self) -> Result<Tensor> {
        let s = self.sizes(4);
        let dtype = self.dtype();
        let (a, b, c) = (self.value(), self.value(), self.value());
        match self.rng.below(12) {
            0 => {
                self.named("zeros");
                Array::zeros(&s, dtype, &cpu()).map(Tensor::new)
            }
            1 => {
                self.named("full");
                Array::full(&s, a, dtype, &cpu()).map(Tensor::new)
            }
            2 => {
                self.named("empty");
                Array::empty(&s, dtype, &cpu()).map(Tensor::new)
            }
            3 => {
                self.named("arange");
                let stop = if self.rng.one_in(2) { self.size() as f64 } else { b };
                Array::arange(a, stop, c, dtype, &cpu()).map(Tensor::new)
            }
            4 => {
                self.named("uniform");
                Array::uniform(a, b, &s, dtype, &cpu()).map(Tensor::new)
            }
            5 => {
                self.named("normal");
                Array::normal(a, b, &s, dtype, &cpu()).map(Tensor::new)
            }
            6 => {
                self.named("eye");
                Tensor::eye(self.size(), &cpu())
            }
            7 => {
                self.named("from_vec");
                Tensor::from_vec(vec![1f32; self.small()], &s, &cpu())
            }
            8 => {
                self.named("check::random");
                check::random(&s, 1).map(Tensor::new)
            }
            9 => {
                self.named("check::random_indices");
                check::random_indices(&s, 1, self.size()).map(Tensor::new)
            }
            _ => {
                let mut inits: Vec<Box<dyn Init>> = vec![
                    Box::new(init::Zero),
                    Box::new(init::Constant(a)),
                    Box::new(init::Uniform(a)),
                    Box::new(init::Normal(a)),
                    Box::new(init::TruncatedNormal(a)),
                    Box::new(init::Xavier::new()),
                    Box::new(init::Xavier::new().gaussian().fan(init::Fan::Out)),
                    Box::new(init::Msra::new().slope(a)),
                    Box::new(init::Identity),
                    Box::new(init::Bilinear),
                    Box::new(init::Mixed::new().rule("", init::One)),
                ];
                // Its work is cubic.
                if shape::numel(&s) <= 4096 || s.first().is_some_and(|&e| e > 1 << 40) {
                    inits.push(Box::new(init::Orthogonal::new().scale(b)));
                }
                let i = self.rng.below(inits.len());
                self.named(&format!("{:?}", inits[i]).chars().take_while(char::is_ascii_alphanumeric).collect::<String>());
                let v = inits[i].values_for("w", &s)?;
                Tensor::from_vec(v, &s, &cpu())
            }
        }
    }

    fn shapes(&mut self) -> Result<Tensor> {
        let x = self.tensor()?;
        let s = self.sizes(4);
        let (a, b) = (self.axis(), self.axis());
        match self.rng.below(20) {
            0 => {
                self.named("reshape");
                let s: Vec<isize> = s.iter().map(|&e| if self.rng.one_in(3) { -1 } else { e as isize }).collect();
                x.reshape(&s)
            }
            1 => {
                self.named("reshape_as");
                x.reshape_as(&s)
            }
            2 => {
                self.named("flatten");
                x.flatten()
            }
            3 => {
                self.named("expand_dims");
                x.expand_dims(a)
            }
            4 => {
                self.named("squeeze");
                let axes = self.axes();
                x.squeeze(&axes)
            }
            5 => {
                self.named("broadcast_to");
                let mut to = s;
                to.extend(x.shape().iter().map(|&e| if e == 1 { self.size() } else { e }));
                x.broadcast_to(&to)
            }
            6 => {
                self.named("transpose");
                x.transpose()
            }
            7 => {
                self.named("permute");
                let axes = if self.rng.one_in(2) { (0..x.rank() as isize).rev().collect() } else { self.axes() };
                x.permute(&axes)
            }
            8 => {
                self.named("swap_axes");
                x.swap_axes(a, b)
            }
            9 => {
                self.named("tile");
                let counts = self.sizes(5);
                x.tile(&counts)
            }
            10 => {
                self.named("repeat");
                x.repeat(self.size(), a)
            }
            11 => {
                self.named("slice");
                let n = x.shape().first().copied().unwrap_or(1);
                let range = self.range(n);
                x.slice_step(a, range, self.size())
            }
            12 => {
                self.named("slices");
                let ranges: Vec<_> = x.shape().iter().map(|&e| self.range(e)).collect();
                x.slices(&ranges)
            }
            13 => {
                self.named("at");
                x.at(a)
            }
            14 => {
                self.named("slice_assign");
                let ranges: Vec<_> = x.shape().iter().map(|&e| self.range(e)).collect();
                let inner: Vec<usize> = ranges.iter().map(|r| r.end.saturating_sub(r.start)).collect();
                let s = self.beside(&inner);
                let v = self.tensor_as(&s, x.dtype())?;
                if self.rng.one_in(2) {
                    x.write(&ranges, &v)?;
                    x.fill(&ranges, self.value())?;
                }
                x.slice_assign(&ranges, &v)
            }
            15 => {
                self.named("pad");
                let margins: Vec<_> = x.shape().iter().map(|_| (self.size(), self.small())).collect();
                x.pad(&margins, self.value())
            }
            16 => {
                self.named("concat");
                let t = self.beside(&x.shape());
                let other = self.tensor_as(&t, x.dtype())?;
                Tensor::concat(&[&x, &other, &x], a)
            }
            17 => {
                self.named("stack");
                Tensor::stack(&[&x, &x], a)
            }
            18 => {
                self.named("split");
                Ok(x.split(self.size(), a)?.remove(0))
            }
            _ => {
                self.named("split_sizes");
                let sizes = self.sizes(4);
                Ok(x.split_sizes(&sizes, a)?.remove(0))
            }
        }
    }

    fn elementwise(&mut self) -> Result<Tensor> {
        let x = self.tensor()?;
        let (a, b) = (self.value(), self.value());
        self.named("unary");
        match self.rng.below(20) {
            0 => x.relu(),
            1 => x.sigmoid(),
            2 => x.tanh(),
            3 => x.gelu(),
            4 => x.gelu_tanh(),
            5 => x.softplus(),
            6 => x.exp(),
            7 => x.log(),
            8 => x.sqrt(),
            9 => x.abs(),
            10 => x.square(),
            11 => x.neg(),
            12 => x.leaky_relu(a),
            13 => x.pow(a),
            14 => x.affine(a, b),
            15 => x.clip(a, b),
            16 => {
                self.named("cast");
                x.cast(self.dtype())
            }
            17 => {
                self.named("dropout");
                autograd::train_mode(|| x.dropout(a))
            }
            18 => {
                self.named("scalar");
                let op: fn(&Tensor, f64) -> Result<Tensor> = *self.rng.of(&[
                    (|x, s| x.add(s)) as fn(&Tensor, f64) -> Result<Tensor>,
                    |x, s| x.div(s),
                    |x, s| x.power(s),
                    |x, s| x.maximum(s),
                    |x, s| s - x,
                    |x, s| s / x,
                    |x, s| x.lt(s),
                ]);
                op(&x, a)
            }
            _ => {
                self.named("read");
                x.to_vec()?;
                let y = x.copy()?;
                y.array().item().map(|_| y)
            }
        }
    }

    fn binary(&mut self) -> Result<Tensor> {
        let (a, b) = self.pair()?;
        self.named("binary");
        match self.rng.below(20) {
            0 => a.add(&b),
            1 => a.sub(&b),
            2 => a.mul(&b),
            3 => a.div(&b),
            4 => a.power(&b),
            5 => a.maximum(&b),
            6 => a.minimum(&b),
            7 => a.eq(&b),
            8 => a.lt(&b),
            9 => a.ge(&b),
            10 => {
                self.named("in place");
                a.add_(&b)?;
                a.mul_(&b)?;
                Ok(a)
            }
            11 => {
                self.named("add_n");
                Tensor::add_n(&[&a, &b, &a])
            }
            12 => {
                self.named("where_");
                a.where_(&b, &b)
            }
            13 => {
                self.named("copy_from");
                a.copy_from(&b).map(|()| a)
            }
            14 => {
                // A column beside a row: the result is the square of what is read.
                self.named("outer");
                let n = self.size();
                let m = self.size();
                let (a, b) = (self.tensor_as(&[n, 1], DType::F32)?, self.tensor_as(&[m], DType::F32)?);
                if self.rng.one_in(2) { a.sub(&b) } else { a.eq(&b) }
            }
            _ => self.loss(&a, &b),
        }
    }

    fn loss(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.named("loss");
        match self.rng.below(6) {
            0 => loss::L2::new().weight(self.value()).forward(a, b),
            1 => loss::L1::new().forward(a, b),
            2 => loss::SigmoidBinaryCrossEntropy::new().from_sigmoid(self.rng.one_in(2)).forward(a, b),
            3 => {
                self.named("softmax_cross_entropy");
                let axis = self.axis();
                let sparse = self.rng.one_in(2);
                let l = loss::SoftmaxCrossEntropy::new().axis(axis).sparse_label(sparse).from_logits(self.rng.one_in(3));
                l.weight(self.value()).forward(a, b)
            }
            4 => {
                self.named("softmax_cross_entropy");
                let mut s = a.shape();
                s.pop();
                let dtype = if self.rng.one_in(2) { DType::I64 } else { DType::U8 };
                let label = self.tensor_as(&s, dtype)?;
                a.softmax_cross_entropy(&label)
            }
            _ => hadal::train::correct(a, b),
        }
    }

    fn reduce(&mut self) -> Result<Tensor> {
        let x = self.tensor()?;
        let axes = self.axes();
        let axis = self.axis();
        self.named("reduce");
        match self.rng.below(12) {
            0 => x.sum(&axes),
            1 => x.mean(&axes),
            2 => x.prod(&axes),
            3 => x.max(&axes),
            4 => x.min(&axes),
            5 => x.norm(&axes),
            6 => x.sum_keepdims(&axes),
            7 => x.max_keepdims(&axes),
            8 => x.argmax(axis),
            9 => x.argmin(if self.rng.one_in(2) { None } else { Some(axis) }),
            10 => {
                self.named("softmax");
                x.softmax(axis)
            }
            _ => {
                self.named("log_softmax");
                x.log_softmax(axis)
            }
        }
    }

    fn index(&mut self) -> Result<Tensor> {
        let x = self.tensor()?;
        let s = self.small_shape();
        let dtype = if self.rng.one_in(2) { DType::I64 } else { DType::U8 };
        match self.rng.below(3) {
            0 => {
                self.named("take");
                let rows = check::random_indices(&s, 1, self.small())?.cast(dtype)?;
                self.bytes += rows.len() * 8;
                x.take(&Tensor::new(rows), self.axis())
            }
            1 => {
                self.named("one_hot");
                let index = self.tensor_as(&s, dtype)?;
                index.one_hot(self.size())
            }
            _ => {
                self.named("pick");
                let mut s = x.shape();
                s.pop();
                let rows = check::random_indices(&s, 1, self.small())?.cast(dtype)?;
                self.bytes += rows.len() * 8;
                x.pick(&Tensor::new(rows))
            }
        }
    }

    fn products(&mut self) -> Result<Tensor> {
        let side = |c: &mut Self| if c.rng.one_in(8) { c.size() } else { c.small() };
        let (m, n, k) = (side(self), side(self), side(self));
        let dtype = *self.rng.of(&[DType::F32, DType::F32, DType::F64, DType::F16]);
        let inner = if self.rng.one_in(12) { self.small() } else { k };
        match self.rng.below(4) {
            0 => {
                self.named("matmul");
                let (mut a, mut b) = (self.small_shape(), self.small_shape());
                a.truncate(2);
                b.truncate(2);
                a.extend([m, k]);
                b.extend([inner, n]);
                let (a, b) = (self.tensor_as(&a, dtype)?, self.tensor_as(&b, dtype)?);
                a.matmul_t(&b, self.rng.one_in(5), self.rng.one_in(5))
            }
            1 => {
                self.named("matmul");
                let (a, b) = (self.tensor_as(&[m, k], dtype)?, self.tensor_as(&[inner, n], dtype)?);
                a.matmul(&b)
            }
            2 => {
                self.named("dot");
                let (a, b) = self.pair()?;
                a.dot(&b)
            }
            _ => {
                self.named("dense");
                let mut s = self.small_shape();
                s.push(k);
                let (x, w, b) = (self.tensor_as(&s, dtype)?, self.tensor_as(&[n, inner], dtype)?, self.tensor_as(&[n], dtype)?);
                let b = self.rng.one_in(2).then_some(&b);
                let f = *self.rng.of(&[UnaryKind::Relu, UnaryKind::Tanh, UnaryKind::Gelu]);
                if self.rng.one_in(2) { x.dense(&w, b) } else { x.dense_activation(&w, b, f) }
            }
        }
    }

    fn windows(&mut self) -> Result<Tensor> {
        match self.rng.below(8) {
            0..=2 => {
                self.named("conv2d");
                let (x, w) = self.images()?;
                let b = self.tensor_as(&[w.shape()[0]], w.dtype())?;
                let options = self.conv();
                x.conv2d(&w, self.rng.one_in(2).then_some(&b), options)
            }
            3 => {
                self.named("max_pool2d");
                let (x, _) = self.images()?;
                let pool = self.pool();
                x.max_pool2d(pool)
            }
            4 => {
                self.named("avg_pool2d");
                let (x, _) = self.images()?;
                let pool = self.pool();
                x.avg_pool2d(pool)
            }
            5 => {
                self.named("global pooling");
                let (x, _) = self.images()?;
                if self.rng.one_in(2) { x.global_avg_pool2d() } else { x.global_max_pool2d() }
            }
            6 => {
                self.named("conv2d_pair");
                let (x, w) = self.images()?;
                let options = [self.conv(), self.conv()];
                Ok(x.conv2d_pair((&w, None, options[0]), (&w, None, options[1]))?.0)
            }
            _ => {
                self.named("d2l");
                let x = self.tensor()?;
                let k = self.tensor()?;
                match self.rng.below(5) {
                    0 => d2l::corr2d(&x, &k),
                    1 => d2l::corr2d_multi_in(&x, &k),
                    2 => d2l::corr2d_multi_in_out(&x, &k),
                    3 => d2l::pool2d(&x, [self.size(), self.size()], d2l::PoolMode::Max),
                    _ => d2l::dropout(&x, self.value()),
                }
            }
        }
    }

    fn normal(&mut self) -> Result<Tensor> {
        let x = self.tensor()?;
        let c = if self.rng.one_in(8) { self.small() } else { x.shape().get(1).copied().unwrap_or(1) };
        let v: Vec<Tensor> = (0..4).map(|_| self.tensor_as(&[c], x.dtype())).collect::<Result<_>>()?;
        let eps = self.value();
        let residual = self.rng.one_in(2);
        match self.rng.below(5) {
            0 => {
                self.named("batch_norm");
                Ok(x.batch_norm(&v[0], &v[1], eps)?.0)
            }
            1 => {
                self.named("batch_norm_relu");
                Ok(x.batch_norm_relu(&v[0], &v[1], residual.then_some(&x), eps)?.0)
            }
            2 => {
                self.named("batch_norm_inference");
                x.batch_norm_inference(&v[0], &v[1], &v[2], &v[3], eps)
            }
            3 => {
                self.named("batch_norm_inference_relu");
                x.batch_norm_inference_relu(&v[0], &v[1], [&v[2], &v[3]], residual.then_some(&x), eps)
            }
            _ => {
                self.named("lerp_");
                let mut a = x.array();
                let s = self.beside(&x.shape());
                a.lerp_(&self.tensor_of(&s)?.array(), eps)?;
                Ok(x)
            }
        }
    }

    /// Layers, models, training, data.
    fn rest(&mut self) -> Result<()> {
        match self.rng.below(8) {
            0 | 1 => {
                self.named("layer");
                let (x, _) = self.images()?;
                let net = nn::Sequential::new();
                let net = match self.rng.below(8) {
                    0 => net
                        .add(nn::Conv2D::new(self.size(), [self.size(), self.small()]).padding(self.size()).stride(self.size())),
                    1 => net
                        .add(nn::Conv2D::new(self.small(), 3).dilation(self.size()).groups(self.size()).in_channels(self.size())),
                    2 => net.add(nn::Dense::new(self.size()).in_units(self.size())),
                    3 => net.add(nn::Dense::new(self.size()).no_flatten().no_bias()),
                    4 => net.add(nn::BatchNorm::new().epsilon(self.value()).momentum(self.value())),
                    5 => net.add(nn::MaxPool2D::new(self.size()).padding(self.size()).stride(self.size())),
                    6 => net.add(nn::AvgPool2D::new(self.size()).padding(self.small()).ceil_mode(true)),
                    _ => net.add(nn::Dropout::new(self.value())).add(nn::Flatten::new()).add(nn::GlobalAvgPool2D::new()),
                };
                net.initialize(init::Normal(self.value()), &cpu())?;
                let y = autograd::record(|| net.forward(&x));
                // Attributes ask for the parameters' sizes.
                self.bytes += net.parameters().iter().filter_map(|p| p.data().ok()).map(|w| w.size() * 8).sum::<usize>();
                self.used(y?)?;
                let mut trainer = match self.rng.below(3) {
                    0 => Trainer::new(net.parameters(), optim::Sgd::new(self.value()).momentum(self.value())),
                    1 => Trainer::new(net.parameters(), optim::Adam::new(self.value())),
                    _ => Trainer::new(net.parameters(), optim::Lars::new(self.value())),
                };
                trainer.step(self.size())
            }
            2 => {
                self.named("model");
                let (a, b, c) = (self.size(), self.size(), self.small());
                let net = match self.rng.below(8) {
                    0 => models::vgg_block(c, a),
                    1 => models::resnet_block(a, c, true),
                    2 => models::bottleneck_block(a, c, true),
                    3 => models::nin_block(a, b, c, a),
                    4 => nn::Sequential::new().add(models::DenseBlock::new(c, a)),
                    5 => nn::Sequential::new().add(models::Inception::new(a, (b, c), (c, a), b)),
                    6 => models::mlp(a),
                    _ => models::transition_block(a),
                };
                // Nets are large beside their input.
                self.bytes += 1 << 20;
                net.initialize(init::One, &cpu())?;
                let x = self.tensor()?;
                if shape::numel(&x.shape()) > 4096 {
                    return Ok(());
                }
                net.forward(&x).map(drop)
            }
            3 => {
                self.named("clip");
                let (a, b) = self.pair()?;
                let mut arrays = [a.array(), b.array()];
                optim::clip_global_norm(&mut arrays, self.value()).map(drop)
            }
            4 => {
                self.named("sampler");
                let (n, batch) = (self.size(), self.size());
                let s = Sampler::new(n, batch)?.last_batch(if self.rng.one_in(2) { LastBatch::Discard } else { LastBatch::Keep });
                let s = if self.rng.one_in(2) { s.shuffle(1) } else { s };
                self.bytes += 4 * n.min(1 << 24);
                let batches = s.epoch(self.size() as u64)?;
                let _ = (batches.get(self.size()), batches.remaining(), permutation(self.small(), 1, 2)?);
                Ok(())
            }
            5 => {
                self.named("resize");
                let plan = ResizePlan::new(self.size(), self.size(), self.size(), self.size())?;
                let ((h, w), (oh, ow)) = (plan.source(), plan.target());
                self.bytes += 16 * (oh + ow);
                if h * w + oh * ow > 1 << 18 {
                    return Ok(());
                }
                self.bytes += h * w + oh * ow;
                plan.run(&vec![7; h * w], &mut vec![0; oh * ow])
            }
            6 => {
                self.named("images");
                let (n, h, w) = (self.small(), self.size(), self.size());
                let set = ImageSet::new(vec![3; n * self.small()], vec![1; n], h, w)?;
                // A plan for resizing holds 16 bytes for each row and column.
                self.bytes += 1 << 20;
                let (some, numbers) = (set.take(self.size()), [self.size() as u32]);
                let _ = (some.get(self.size()), some.gather(&numbers, None));
                let loader = DataLoader::new(&some, self.size(), &cpu())?.workers(self.small().min(3));
                let loader = if self.rng.one_in(2) { loader.resize(self.size(), self.small())? } else { loader };
                for batch in loader.epoch(0)?.take(2) {
                    self.bytes += batch?.0.size() * 8;
                }
                Ok(())
            }
            _ => {
                self.named("shape");
                let (a, b) = (self.sizes(5), self.sizes(5));
                let _ = (shape::numel(&a), shape::strides(&a, Layout::ChannelsLast), shape::strides(&a, Layout::RowMajor));
                let joined = shape::broadcast("test", &a, &b)?;
                let _ = (shape::broadcast_strides(&a, &joined), shape::broadcast_strides(&joined, &a));
                let (axis, axes) = (self.axis(), self.axes());
                shape::axis("test", axis, self.size())?;
                shape::axes("test", &axes, self.small()).map(drop)
            }
        }
    }
}
