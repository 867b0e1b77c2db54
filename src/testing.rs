//! What the crate's own tests ask of the code under test: a forced plan, which algorithms were selected, a record of launches.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
};

use crate::cuda::{Define, TensorMap};

thread_local! {
    /// Launches of this thread, while [`record`] runs.
    static RECORD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// A plan for tests, in the place of the selector's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Force {
    /// The algorithms that are to compute what they support, by name.
    pub algorithms: &'static [&'static str],
    /// Algorithms that do not compute the rest.
    pub without: &'static [&'static str],
    /// Rows and columns of mma.sync; the place of the tile in its list for wgmma; rows and groups of a first layer.
    pub tile: [usize; 2],
    pub stages: usize,
    /// Splits of k; CTAs of a first layer.
    pub splits: usize,
}

/// The algorithms that run on wgmma.
pub(crate) const ON_WGMMA: &[&str] = &["wgmma", "halo_wgmma", "im2col_wgmma", "bf16x6"];

impl Force {
    /// mma.sync.
    pub(crate) const fn mma(tile: [usize; 2], stages: usize, splits: usize) -> Self {
        Force { algorithms: &["mma"], without: ON_WGMMA, tile, stages, splits }
    }

    /// Neither tensor cores nor other special kernels.
    pub(crate) const fn simt() -> Self {
        Force { algorithms: &["simt"], ..Self::mma([0, 0], 0, 1) }
    }

    /// wgmma, in f32 bf16x6, by the `tile`-th tile; 3x3 convolutions with a halo if that is asked for, else none of them.
    pub(crate) const fn wgmma(tile: usize, splits: usize, halo: bool) -> Self {
        let algorithms: &[&str] = if halo { &["wgmma", "halo_wgmma", "bf16x6"] } else { &["wgmma", "im2col_wgmma", "bf16x6"] };
        Force { algorithms, without: ON_WGMMA, tile: [tile, 0], stages: 0, splits }
    }

    /// Anything but wgmma.
    pub(crate) const fn without_wgmma() -> Self {
        Force { algorithms: &[], ..Self::mma([0, 0], 0, 1) }
    }

    /// The kernels of first layers, or of the stem block: at most so many rows and groups, and as many CTAs.
    pub(crate) const fn bands(algorithms: &'static [&'static str], rows: usize, groups: usize, ctas: usize) -> Self {
        Force { algorithms, without: &[], tile: [rows, groups], stages: 0, splits: ctas }
    }
}

thread_local! {
    static FORCED: Cell<Option<Force>> = const { Cell::new(None) };
    /// Algorithms selected on this thread.
    static SELECTED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

/// What a test forces on this thread.
pub(crate) fn forced() -> Option<Force> {
    FORCED.get()
}

/// The plan that a test forces for an algorithm.
pub(crate) fn forced_for(algorithm: &str) -> Option<Force> {
    FORCED.get().filter(|f| f.algorithms.contains(&algorithm))
}

/// Runs `f` with forced plans.
pub(crate) fn with_forced<T>(force: Force, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<Force>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(Some(force)));
    f()
}

/// Notes that an algorithm was selected.
pub(crate) fn reached(algorithm: &'static str) {
    SELECTED.with_borrow_mut(|s| s.push(algorithm));
}

/// How often these algorithms were selected on this thread.
pub(crate) fn selected(algorithms: &[&str]) -> usize {
    SELECTED.with_borrow(|s| s.iter().filter(|a| algorithms.contains(a)).count())
}

/// Runs `f`, and counts how often it selected one of these algorithms: a test must not pass by other kernels.
pub(crate) fn count_selected<T>(algorithms: &[&str], f: impl FnOnce() -> T) -> (T, usize) {
    let before = selected(algorithms);
    let out = f();
    (out, selected(algorithms) - before)
}

/// Runs `f` with all launches recorded in the place of being run; nothing is compiled. Results hold no values then.
///
/// A line of the record is file, kernel, defines, grid, block, shared memory, tensor maps, and a hash of the other arguments, with the
/// number of the array in the place of each address: all that the result depends on, besides the arrays.
pub(crate) fn record<T>(f: impl FnOnce() -> T) -> (T, Vec<String>) {
    RECORD.set(Some(Vec::new()));
    let out = f();
    (out, RECORD.take().unwrap_or_default())
}

/// One launch of a record.
pub(crate) struct Record {
    line: String,
    addresses: Vec<u64>,
}

impl Record {
    /// `None` when launches run.
    pub(crate) fn new(file: &str, name: &str, defines: &[(&'static str, Define)]) -> Option<Self> {
        RECORD.with_borrow(|r| r.is_some()).then(|| {
            let mut line = format!("{file} {name}");
            for (name, value) in defines {
                let _ = write!(line, " {name}={value:?}");
            }
            Record { line, addresses: Vec::new() }
        })
    }

    pub(crate) fn address(&mut self, address: u64) {
        self.addresses.push(address);
    }

    pub(crate) fn tensor_map(&mut self, map: &TensorMap) {
        let _ = write!(self.line, " {map:?}");
    }

    pub(crate) fn launched(mut self, words: &[u64], grid: [u32; 3], block: [u32; 3], shared: u32) {
        // FNV-1a.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for word in words {
            let place = self.addresses.iter().position(|a| a == word && *a != 0);
            for byte in place.map_or(*word, |i| 1 << 60 | i as u64).to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        let _ = write!(self.line, " grid {grid:?} block {block:?} shared {shared} {} words {hash:016x}", words.len());
        RECORD.with_borrow_mut(|r| r.iter_mut().for_each(|all| all.push(std::mem::take(&mut self.line))));
    }
}

/// A tool: the kernels, plans and arguments that are chosen for some hundred problems, without running them.
///
///     HADAL_CHOICES=/tmp/8.0.txt HADAL_EMU_CC=8.0 emulator/run cargo test --release --lib choices -- --ignored
///
/// Files of two states of the code that are alike prove that a change moves no choice and no argument.
mod choices {
    use std::io::Write as _;

    use super::record;
    use crate::{
        Array, Context, DType, Layout, Result,
        autograd::{self, Op, Saved},
        gpu,
        ops::{
            Conv2d, Conv2dOptions, Conv2dPair, Dense, DenseActivation, MatMul, PoolOptions, StemBlock, StemBlockInference,
            UnaryKind,
        },
        precision::{self, Precision},
    };

    const MATHS: [(&str, DType, Precision); 4] = [
        ("f32", DType::F32, Precision::F32),
        ("tf32", DType::F32, Precision::Tf32),
        ("bf16", DType::BF16, Precision::F32),
        ("f16", DType::F16, Precision::F32),
    ];

    /// Channels, height and width, filters, kernel, options.
    type Geometry = (usize, [usize; 2], usize, [usize; 2], Conv2dOptions);

    fn geometries() -> Vec<Geometry> {
        let o = Conv2dOptions::new;
        let square = |c, side, filters, kernel, options| (c, [side; 2], filters, [kernel; 2], options);
        vec![
            square(1, 96, 64, 7, o().stride(2).padding(3)),
            square(3, 64, 64, 7, o().stride(2).padding(3)),
            square(1, 28, 6, 5, o().padding(2)),
            square(3, 32, 32, 3, o().padding(1)),
            square(1, 67, 96, 11, o().stride(4)),
            square(6, 14, 16, 5, o()),
            square(64, 24, 64, 3, o().padding(1)),
            square(64, 24, 128, 3, o().stride(2).padding(1)),
            square(64, 24, 128, 1, o().stride(2)),
            square(128, 12, 128, 3, o().padding(1)),
            square(256, 6, 256, 3, o().padding(1)),
            square(256, 6, 512, 3, o().stride(2).padding(1)),
            square(512, 3, 512, 3, o().padding(1)),
            square(64, 24, 256, 1, o()),
            square(96, 13, 256, 5, o().padding(2)),
            square(64, 14, 64, 3, o().padding(1).groups(64)),
            square(30, 15, 30, 5, o().padding(2).stride(2).groups(30)),
            square(128, 14, 128, 3, o().padding(1).groups(4)),
            square(256, 9, 256, 3, o().stride(2).padding(1).groups(2)),
            square(64, 20, 64, 3, o().padding(2).dilation(2)),
            square(17, 13, 23, 3, o().padding(1)),
            square(44, 17, 20, 3, o().padding(1)),
            (64, [40, 11], 96, [5, 3], o().stride([3, 1]).padding([0, 1, 2, 0])),
            (32, [7, 260], 64, [3, 3], o().padding(1)),
            (64, [1, 90], 72, [3, 3], o().padding(1)),
        ]
    }

    struct Table {
        ctx: Context,
        file: std::fs::File,
    }

    impl Table {
        fn array(&self, shape: &[usize], dtype: DType, layout: Layout) -> Result<Array> {
            Array::uninit(shape, dtype, layout, &self.ctx)
        }

        /// Forward, then backward with a gradient that has arrived for the first input if that is asked for.
        fn case(&mut self, name: &str, op: &dyn Op, x: &[&Array], needs: Vec<bool>, arrived: bool) -> Result<()> {
            let mut saved = Saved::new(x, needs);
            let (y, forward) = record(|| autograd::train_mode(|| op.forward(x, &mut saved)));
            let (y, mut backward) = (y?, Vec::new());
            if saved.wanted() {
                if arrived {
                    saved.arrive(0, x[0].uninit_like()?)?;
                }
                let dy = y.iter().map(Array::uninit_like).collect::<Result<Vec<_>>>()?;
                let (grads, launches) = record(|| op.backward(&saved, &dy));
                grads?;
                backward = launches;
            }
            let lines = forward.iter().map(|l| ("forward", l)).chain(backward.iter().map(|l| ("backward", l)));
            let text: String = lines.map(|(pass, line)| format!("  {pass} {line}\n")).collect();
            write!(self.file, "{name}\n{text}").expect("the table can be written");
            Ok(())
        }

        fn convolutions(&mut self, (word, dtype, _): (&str, DType, Precision)) -> Result<()> {
            let row_major = Layout::RowMajor;
            for (i, (c, [h, w], filters, [kh, kw], options)) in geometries().into_iter().enumerate() {
                for (j, n) in [2, 32, 128].into_iter().enumerate() {
                    for layout in [Layout::ChannelsLast, row_major] {
                        let x = self.array(&[n, c, h, w], dtype, layout)?;
                        let f =
                            self.array(&[filters, c / options.groups, kh, kw], dtype, if j == 1 { layout } else { row_major })?;
                        let b = self.array(&[filters], dtype, row_major)?;
                        let (bias, arrived) = ((i + j) % 2 == 0, (i + j) % 3 == 0);
                        let all = [&x, &f, &b];
                        let inputs = &all[..if bias { 3 } else { 2 }];
                        let name =
                            format!("conv {word} {n}x{c}x{h}x{w} {layout:?} {filters} {kh}x{kw} {options:?} {bias} {arrived}");
                        self.case(&name, &Conv2d(options), inputs, vec![true; inputs.len()], arrived)?;
                    }
                }
            }
            let o = Conv2dOptions::new;
            for (c, side, filters, kernels, options) in [
                (64, 24, [128, 128], [3, 1], [o().stride(2).padding(1), o().stride(2)]),
                (128, 12, [256, 256], [3, 1], [o().stride(2).padding(1), o().stride(2)]),
                (64, 24, [128, 128], [3, 1], [o().padding(1), o()]),
                (64, 24, [64, 256], [1, 1], [o(), o()]),
                (256, 12, [128, 512], [1, 1], [o(), o().stride(2)]),
                (40, 7, [16, 24], [3, 1], [o().padding(1), o()]),
                (13, 9, [16, 24], [3, 1], [o().stride(2).padding(1), o().stride(2)]),
            ] {
                for (j, n) in [2, 32, 128].into_iter().enumerate() {
                    for layout in [Layout::ChannelsLast, row_major] {
                        let x = self.array(&[n, c, side, side], dtype, layout)?;
                        let f = [0, 1].map(|i| self.array(&[filters[i], c, kernels[i], kernels[i]], dtype, row_major));
                        let [f1, f2] = [f[0].as_ref(), f[1].as_ref()].map(|f| f.expect("memory"));
                        let b = self.array(&[filters[0]], dtype, row_major)?;
                        let all = [&x, f1, &b, f2];
                        let bias = j == 1;
                        let inputs: Vec<&Array> = all.into_iter().filter(|a| bias || a.rank() == 4).collect();
                        let name =
                            format!("pair {word} {n}x{c}x{side}x{side} {layout:?} {filters:?} {kernels:?} {options:?} {bias}");
                        let op = Conv2dPair::new(options, [bias, false]);
                        self.case(&name, &op, &inputs, vec![true; inputs.len()], j == 2)?;
                    }
                }
            }
            if word != "tf32" {
                for (c, side, n) in [(1, 96, 64), (3, 64, 8), (1, 28, 4)] {
                    let x = self.array(&[n, c, side, side], dtype, Layout::ChannelsLast)?;
                    let f = self.array(&[64, c, 7, 7], dtype, row_major)?;
                    let p = self.array(&[64], DType::F32, row_major)?;
                    let block = StemBlock::new(o().stride(2).padding(3), false, 1e-5, PoolOptions::new(3).stride(2).padding(1));
                    let name = format!("stem {word} {n}x{c}x{side}x{side}");
                    self.case(&name, &block, &[&x, &f, &p, &p], vec![false, true, true, true], false)?;
                    self.case(&name, &StemBlockInference(block), &[&x, &f, &p, &p, &p, &p], vec![false; 6], false)?;
                }
            }
            Ok(())
        }

        fn products(&mut self, (word, dtype, _): (&str, DType, Precision)) -> Result<()> {
            let sizes = [
                [256, 256, 784],
                [1024, 1024, 1024],
                [4096, 2048, 1024],
                [520, 264, 4608],
                [64, 4096, 576],
                [256, 10, 256],
                [8, 8, 16],
                [1, 3, 104],
                [65, 63, 67],
                [2048, 2048, 100],
                [256, 256, 65536],
            ];
            for [m, n, k] in sizes {
                for (ta, tb) in [(false, false), (false, true), (true, false)] {
                    let a = self.array(&if ta { [k, m] } else { [m, k] }, dtype, Layout::RowMajor)?;
                    let b = self.array(&if tb { [n, k] } else { [k, n] }, dtype, Layout::RowMajor)?;
                    let name = format!("matmul {word} {m}x{n}x{k} {ta} {tb}");
                    self.case(&name, &MatMul { transpose_a: ta, transpose_b: tb }, &[&a, &b], vec![true; 2], false)?;
                }
                let [x, w] = [self.array(&[m, k], dtype, Layout::RowMajor)?, self.array(&[n, k], dtype, Layout::RowMajor)?];
                let b = self.array(&[n], dtype, Layout::RowMajor)?;
                self.case(&format!("dense {word} {m}x{n}x{k}"), &Dense, &[&x, &w, &b], vec![true; 3], false)?;
                for f in [UnaryKind::Relu, UnaryKind::Sigmoid] {
                    let name = format!("dense {f:?} {word} {m}x{n}x{k}");
                    self.case(&name, &DenseActivation(f), &[&x, &w, &b], vec![true; 3], false)?;
                }
            }
            for (a, b) in [
                (vec![8, 1, 256, 128], vec![4, 128, 256]),
                (vec![32, 96, 64], vec![64, 48]),
                (vec![64, 64], vec![16, 64, 64]),
                (vec![4, 4, 1024, 1024], vec![1, 4, 1024, 512]),
            ] {
                let name = format!("matmul {word} {a:?} {b:?}");
                let [a, b] = [self.array(&a, dtype, Layout::RowMajor)?, self.array(&b, dtype, Layout::RowMajor)?];
                self.case(&name, &MatMul::default(), &[&a, &b], vec![true; 2], false)?;
            }
            Ok(())
        }
    }

    #[test]
    #[ignore = "a tool: writes a table for a comparison by hand"]
    fn choices() -> Result<()> {
        let path = std::env::var_os("HADAL_CHOICES").expect("HADAL_CHOICES names the table's file");
        let mut table = Table { ctx: gpu(0)?, file: std::fs::File::create(path).expect("the table can be written") };
        for math in MATHS {
            precision::with(math.2, || {
                table.convolutions(math)?;
                table.products(math)
            })?;
        }
        Ok(())
    }
}
