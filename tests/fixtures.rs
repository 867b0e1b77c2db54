//! Cases from independent engines: values and gradients through the public API, on every context.
//!
//! The folder `tests/fixtures/` (its README describes the form) or `$HADAL_FIXTURES`, for further cases in the same form.
//! Each case runs in f32 and f64, row-major and, where an input has 4 dimensions, channels-last.

mod common;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use hadal::{
    Array, Context, DType, Error, Layout, Result, Tensor, autograd, check,
    loss::{L2, SoftmaxCrossEntropy},
    ops::{Conv2dOptions, PoolOptions},
    optim::{self, Adam, Convention, Optimizer, Sgd, Step},
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// One file: what goes in, and what has to come out.
struct Case {
    name: String,
    op: String,
    attrs: Value,
    tensors: BTreeMap<String, Stored>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    grads: Vec<String>,
    rtol: f64,
    atol: f64,
}

/// A tensor of a file: numbers are exact in f64.
struct Stored {
    shape: Vec<usize>,
    values: Vec<f64>,
    integer: bool,
}

fn bad(path: &Path, reason: impl ToString) -> Error {
    Error::Data { path: path.display().to_string(), reason: reason.to_string() }
}

impl Case {
    fn read(path: &Path) -> Result<Case> {
        let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(path, e))?;
        let meta = header.metadata().clone().unwrap_or_default();
        let word = |key: &str| meta.get(key).cloned().ok_or_else(|| bad(path, format!("the metadata has no {key}")));
        let json = |key: &str| serde_json::from_str::<Value>(&word(key)?).map_err(|e| bad(path, format!("{key}: {e}")));
        let names = |key: &str| serde_json::from_value::<Vec<String>>(json(key)?).map_err(|e| bad(path, format!("{key}: {e}")));
        let number = |key: &str| word(key)?.parse::<f64>().map_err(|e| bad(path, format!("{key}: {e}")));
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(path, e))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let words = view.data().as_chunks::<4>().0.iter();
            let (values, integer): (Vec<f64>, bool) = match view.dtype() {
                Dtype::F32 => (words.map(|w| f32::from_le_bytes(*w).into()).collect(), false),
                Dtype::I32 => (words.map(|w| i32::from_le_bytes(*w).into()).collect(), true),
                other => return Err(bad(path, format!("{name} is {other:?}"))),
            };
            tensors.insert(name, Stored { shape: view.shape().to_vec(), values, integer });
        }
        let (inputs, outputs, grads) = (names("inputs")?, names("outputs")?, names("grads")?);
        let expected = outputs.iter().map(|o| format!("out.{o}")).chain(grads.iter().map(|g| format!("grad.{g}")));
        if let Some(absent) = expected.chain(inputs.iter().map(|i| format!("in.{i}"))).find(|n| !tensors.contains_key(n)) {
            return Err(bad(path, format!("{absent} is named but not there")));
        }
        // What the file holds but does not name would go unchecked.
        let unnamed =
            |k: &String, prefix: &str, names: &[String]| k.strip_prefix(prefix).is_some_and(|n| !names.iter().any(|m| m == n));
        if let Some(extra) = tensors.keys().find(|k| unnamed(k, "grad.", &grads) || unnamed(k, "out.", &outputs)) {
            return Err(bad(path, format!("{extra} is there but not named")));
        }
        let (rtol, atol) = (number("rtol")?, number("atol")?);
        Ok(Case { name: word("case")?, op: word("op")?, attrs: json("attrs")?, tensors, inputs, outputs, grads, rtol, atol })
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| Error::Check(format!("the case has no {name}")))
    }

    /// The stored tensor as the context, dtype and layout ask; labels are i64.
    fn tensor(&self, name: &str, how: &How) -> Result<Tensor> {
        let Stored { shape, values, integer } = self.stored(name)?;
        let a = if *integer {
            Array::from_vec(values.iter().map(|&v| v as i64).collect(), shape, &hadal::cpu())?
        } else {
            check::cast(&Array::from_vec(values.clone(), shape, &hadal::cpu())?, how.dtype)?
        };
        let a = if a.rank() == 4 { a.to_layout(how.layout)? } else { a };
        a.to_context(&how.context).map(Tensor::new)
    }

    /// Runs the case; `Err` names the tensor and its worst element.
    fn run(&self, how: &How) -> Result<()> {
        let variable = |name: &String| {
            let t = self.tensor(&format!("in.{name}"), how)?;
            Ok((name.clone(), if self.grads.contains(name) { t.attach_grad() } else { t }))
        };
        let inputs: BTreeMap<String, Tensor> = self.inputs.iter().map(variable).collect::<Result<_>>()?;
        let call = Call { inputs: &inputs, attrs: &self.attrs };
        let outputs = autograd::record(|| forward(&self.op, &call))?;
        for name in &self.outputs {
            let own = outputs.iter().find(|(n, _)| n == name).map(|(_, t)| t);
            let own = own.ok_or_else(|| Error::Check(format!("out.{name} is not computed")))?;
            self.compare(&format!("out.{name}"), own)?;
        }
        if self.grads.is_empty() {
            return Ok(());
        }
        let heads: Vec<_> = outputs.iter().filter(|(n, _)| self.tensors.contains_key(&format!("cot.{n}"))).collect();
        let [(name, head)] = heads[..] else {
            return Err(Error::Check(format!("one cotangent is needed, {} are there", heads.len())));
        };
        head.backward_from(&self.tensor(&format!("cot.{name}"), how)?, false)?;
        for name in &self.grads {
            let input = inputs.get(name).ok_or_else(|| Error::Check(format!("grad.{name} has no input")))?;
            self.compare(&format!("grad.{name}"), &input.grad()?)?;
        }
        Ok(())
    }

    /// |own − expected| ≤ atol + rtol·|expected|, element by element.
    fn compare(&self, name: &str, own: &Tensor) -> Result<()> {
        let expected = self.stored(name)?;
        if own.shape() != expected.shape {
            return Err(Error::Check(format!("{name}: shape {:?}, expected {:?}", own.shape(), expected.shape)));
        }
        let excess = |(_, (a, e)): &(usize, (f64, &f64))| {
            let d = (a - *e).abs() / (self.atol + self.rtol * e.abs());
            // 0/0 where the case asks for equality and has it; a NaN of our own is infinitely wrong.
            if *a == **e {
                0.0
            } else if d.is_nan() {
                f64::INFINITY
            } else {
                d
            }
        };
        let own = own.array().to_f64_vec()?;
        let worst = own.into_iter().zip(&expected.values).enumerate().max_by(|a, b| excess(a).total_cmp(&excess(b)));
        match worst {
            Some(w) if excess(&w) > 1.0 => {
                let (i, (a, e)) = w;
                let strides = hadal::shape::strides(&expected.shape, Layout::RowMajor);
                let at: Vec<usize> = strides.iter().zip(&expected.shape).map(|(s, e)| i / s % e).collect();
                let bound = self.atol + self.rtol * e.abs();
                Err(Error::Check(format!(
                    "{name}{at:?}: {a}, expected {e}, off by {:.2e} with {bound:.2e} allowed",
                    (a - e).abs()
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Where and how a case runs.
#[derive(Debug)]
struct How {
    context: Context,
    dtype: DType,
    layout: Layout,
}

/// What an op is called with.
struct Call<'a> {
    inputs: &'a BTreeMap<String, Tensor>,
    attrs: &'a Value,
}

impl Call<'_> {
    fn get(&self, name: &str) -> Result<&Tensor> {
        self.inputs.get(name).ok_or_else(|| Error::Check(format!("the case has no in.{name}")))
    }
    fn optional(&self, name: &str) -> Option<&Tensor> {
        self.inputs.get(name)
    }
    /// x0, x1, …
    fn numbered(&self) -> Vec<&Tensor> {
        (0..).map_while(|i| self.optional(&format!("x{i}"))).collect()
    }
    fn attr(&self, name: &str) -> Result<&Value> {
        self.attrs.get(name).ok_or_else(|| Error::Check(format!("the attribute {name} is missing")))
    }
    fn number(&self, name: &str) -> Result<f64> {
        self.attr(name)?.as_f64().ok_or_else(|| Error::Check(format!("the attribute {name} is no number")))
    }
    fn flag(&self, name: &str) -> Result<bool> {
        self.attr(name)?.as_bool().ok_or_else(|| Error::Check(format!("the attribute {name} is neither true nor false")))
    }
    fn int(&self, name: &str) -> Result<isize> {
        self.number(name).map(|v| v as isize)
    }
    fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let list = self.attr(name)?.as_array().and_then(|l| l.iter().map(Value::as_f64).collect());
        list.ok_or_else(|| Error::Check(format!("the attribute {name} is no list of numbers")))
    }
    fn ints(&self, name: &str) -> Result<Vec<isize>> {
        Ok(self.numbers(name)?.into_iter().map(|v| v as isize).collect())
    }
    fn sizes<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let list: Vec<usize> = self.numbers(name)?.into_iter().map(|v| v as usize).collect();
        list.try_into().map_err(|l| Error::Check(format!("the attribute {name} is {l:?}, {N} numbers are needed")))
    }
    /// `null`, one axis or a list; all axes are an empty list.
    fn axes(&self) -> Result<Vec<isize>> {
        match self.attrs.get("axis") {
            Some(Value::Array(_)) => self.ints("axis"),
            Some(Value::Number(_)) => Ok(vec![self.int("axis")?]),
            _ => Ok(Vec::new()),
        }
    }
}

/// The op's outputs by name.
fn forward(op: &str, c: &Call) -> Result<Vec<(String, Tensor)>> {
    let x = || c.get("x");
    let (a, b) = (|| c.get("a"), || c.get("b"));
    let y = match op {
        "relu" => x()?.relu(),
        "leaky_relu" => x()?.leaky_relu(c.number("slope")?),
        "sigmoid" => x()?.sigmoid(),
        "tanh" => x()?.tanh(),
        "gelu" => x()?.gelu(),
        "gelu_tanh" => x()?.gelu_tanh(),
        "softplus" => x()?.softplus(),
        "exp" => x()?.exp(),
        "log" => x()?.log(),
        "sqrt" => x()?.sqrt(),
        "abs" => x()?.abs(),
        "square" => x()?.square(),
        "reshape" => x()?.reshape(&c.ints("shape")?),
        "transpose" => x()?.permute(&c.ints("axes")?),
        "concat" => Tensor::concat(&c.numbered(), c.int("axis")?),
        "add" => a()? + b()?,
        "sub" => a()? - b()?,
        "mul" => a()? * b()?,
        "div" => a()? / b()?,
        "sum" if c.flag("keepdims")? => x()?.sum_keepdims(&c.axes()?),
        "sum" => x()?.sum(&c.axes()?),
        "mean" if c.flag("keepdims")? => x()?.mean_keepdims(&c.axes()?),
        "mean" => x()?.mean(&c.axes()?),
        "max" if c.flag("keepdims")? => x()?.max_keepdims(&c.axes()?),
        "max" => x()?.max(&c.axes()?),
        "argmax" => x()?.argmax(c.int("axis")?),
        "matmul" | "batch_matmul" => a()?.matmul_t(b()?, c.flag("transpose_a")?, c.flag("transpose_b")?),
        "dense" if c.flag("flatten")? => x()?.flatten()?.dense(c.get("w")?, c.optional("b")),
        "dense" => x()?.dense(c.get("w")?, c.optional("b")),
        "conv2d" => {
            let options = Conv2dOptions::new().stride(c.sizes("stride")?).padding(c.sizes::<4>("pads")?);
            let options = options.dilation(c.sizes("dilation")?).groups(c.int("groups")? as usize);
            x()?.conv2d(c.get("w")?, c.optional("b"), options)
        }
        "max_pool2d" => x()?.max_pool2d(pool(c)?),
        "avg_pool2d" => x()?.avg_pool2d(pool(c)?.count_include_pad(c.flag("count_include_pad")?)),
        "global_avg_pool2d" => x()?.global_avg_pool2d(),
        "global_max_pool2d" => x()?.global_max_pool2d(),
        "softmax" => x()?.softmax(c.int("axis")?),
        "log_softmax" => x()?.log_softmax(c.int("axis")?),
        // The mask is the case's own; with random ones dropout is the same product.
        "dropout_with_mask" => (x()? * c.get("mask")?)?.affine(1.0 / (1.0 - c.number("p")?), 0.0),
        "batch_norm" => return batch_norm(c),
        "softmax_cross_entropy" => {
            let loss = SoftmaxCrossEntropy::new().axis(c.int("axis")?).from_logits(c.flag("from_logits")?);
            let loss = loss.sparse_label(c.flag("sparse_label")?).forward(x()?, c.get("label")?)?;
            return Ok(vec![("loss".into(), loss)]);
        }
        "l2_loss" => {
            let loss = L2::new().weight(c.number("weight")?).forward(x()?, c.get("label")?)?;
            return Ok(vec![("loss".into(), loss)]);
        }
        "clip_global_norm" => {
            let mut arrays: Vec<Array> = c.numbered().iter().map(|t| t.array()).collect();
            let norm = optim::clip_global_norm(&mut arrays, c.number("max_norm")?)?;
            let scaled = arrays.into_iter().enumerate().map(|(i, a)| (format!("y{i}"), Tensor::new(a)));
            return Ok(scaled.chain([("norm".to_owned(), Tensor::new(norm))]).collect());
        }
        "sgd_steps" => {
            let sgd = Sgd::new(0.0).momentum(c.number("momentum")?).weight_decay(c.number("wd")?).convention(convention(c)?);
            return steps(sgd, c, &["mom"]);
        }
        "adam_steps" => return steps(adam(Adam::new(c.number("lr")?), c)?, c, &["m", "v"]),
        "adamw_steps" => return steps(adam(Adam::adamw(c.number("lr")?), c)?, c, &["m", "v"]),
        _ => return Err(Error::Check(format!("the op {op} is unknown to this suite"))),
    };
    Ok(vec![("y".into(), y?)])
}

fn pool(c: &Call) -> Result<PoolOptions> {
    let options = PoolOptions::new(c.sizes::<2>("kernel")?).stride(c.sizes::<2>("stride")?);
    Ok(options.padding(c.sizes::<4>("pads")?).ceil_mode(c.flag("ceil_mode")?))
}

/// y, and the running statistics after the step: m·running + (1 − m)·batch, unchanged in prediction.
fn batch_norm(c: &Call) -> Result<Vec<(String, Tensor)>> {
    let (x, gamma, beta, eps) = (c.get("x")?, c.get("gamma")?, c.get("beta")?, c.number("eps")?);
    let (mean, var) = (c.get("running_mean")?, c.get("running_var")?);
    let y = if c.flag("training")? {
        let (y, batch_mean, batch_var) = x.batch_norm(gamma, beta, eps)?;
        for (running, batch) in [(mean, batch_mean), (var, batch_var)] {
            running.update(|r| r.lerp_(&batch.array(), c.number("momentum")?))?;
        }
        y
    } else {
        x.batch_norm_inference(gamma, beta, mean, var, eps)?
    };
    let named = [("y", y), ("running_mean_after", mean.clone()), ("running_var_after", var.clone())];
    Ok(named.map(|(n, t)| (n.to_owned(), t)).into())
}

fn convention(c: &Call) -> Result<Convention> {
    match c.attr("convention")?.as_str() {
        Some("mxnet") => Ok(Convention::MxNet),
        Some("pytorch") => Ok(Convention::PyTorch),
        other => Err(Error::Check(format!("the convention {other:?} is unknown to this suite"))),
    }
}

fn adam(rule: Adam, c: &Call) -> Result<Adam> {
    let rule = rule.betas(c.number("beta1")?, c.number("beta2")?).eps(c.number("eps")?);
    Ok(rule.weight_decay(c.number("wd")?).convention(convention(c)?))
}

/// The parameter and the states after each update with the gradients `in.g`, one after the other along a new axis.
fn steps(mut rule: impl Optimizer, c: &Call, states: &[&str]) -> Result<Vec<(String, Tensor)>> {
    let (mut w, gradients) = (c.get("w0")?.array(), c.get("g")?);
    let rates = c.numbers("lr").unwrap_or_default();
    let rescale = c.number("rescale_grad").unwrap_or(1.0);
    let mut out: Vec<(String, Vec<Tensor>)> = [&["w"], states].concat().iter().map(|n| (n.to_string(), Vec::new())).collect();
    for t in 0..gradients.len() {
        if let Some(&lr) = rates.get(t) {
            rule.set_learning_rate(lr);
        }
        let before = Tensor::new(w.clone());
        rule.update(0, &mut w, &gradients.at(t as isize)?.array(), &Step { rescale, ..Step::default() })?;
        let kept = rule.state()?;
        for (name, list) in &mut out {
            let state = kept.iter().find(|(n, _)| *n == format!("0.{name}")).map(|(_, a)| Tensor::new(a.clone()));
            list.push(match (name.as_str(), state) {
                ("w", _) => Tensor::new(w.clone()),
                (_, Some(state)) => state,
                // Without momentum nothing is kept: the state would be the step itself.
                ("mom", None) => (&Tensor::new(w.clone()) - &before)?,
                (name, None) => return Err(Error::Check(format!("the optimizer keeps no {name}"))),
            });
        }
    }
    out.into_iter().map(|(name, list)| Ok((name, Tensor::stack(&list.iter().collect::<Vec<_>>(), 0)?))).collect()
}

/// The folder's files in order.
fn files() -> (PathBuf, Vec<PathBuf>) {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = env::var_os("HADAL_FIXTURES").map_or_else(own, PathBuf::from);
    let mut found = Vec::new();
    let mut folders = vec![folder.clone()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for path in entries.map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "safetensors") {
                found.push(path);
            }
        }
    }
    found.sort();
    (folder, found)
}

#[test]
fn every_case_agrees_with_the_engines() {
    let (folder, files) = files();
    let (mut unreadable, mut failures, mut runs) = (Vec::new(), Vec::new(), 0);
    for path in &files {
        let case = match Case::read(path) {
            Ok(case) => case,
            Err(e) => {
                unreadable.push(e.to_string());
                continue;
            }
        };
        let images = case.inputs.iter().any(|i| case.tensors[&format!("in.{i}")].shape.len() == 4);
        for context in common::contexts() {
            for dtype in [DType::F32, DType::F64] {
                for layout in [Layout::RowMajor, Layout::ChannelsLast] {
                    if layout == Layout::RowMajor || images {
                        let how = How { context, dtype, layout };
                        runs += 1;
                        if let Err(e) = case.run(&how) {
                            failures.push(format!("{} on {context} in {dtype}, {layout:?}: {e}", case.name));
                        }
                    }
                }
            }
        }
    }
    println!("{} cases of {}, {runs} runs", files.len(), folder.display());
    assert!(!files.is_empty(), "no case in {}", folder.display());
    assert!(unreadable.is_empty(), "{} of {} files cannot be read:\n{}", unreadable.len(), files.len(), unreadable.join("\n"));
    assert!(failures.is_empty(), "{} of {runs} runs failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_file_with_an_output_that_it_does_not_name_is_refused() {
    let (folder, files) = files();
    let bytes = fs::read(files.iter().find(|f| f.ends_with("relu_001.safetensors")).expect("relu_001")).unwrap();
    let read = |from: &str, to: &str| {
        // Both of one length: the offsets in the file stay right.
        let mut bytes = bytes.clone();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap_or_else(|| panic!("no {from}"));
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        let path = env::temp_dir().join(format!("hadal-fixture-{}-{}.safetensors", std::process::id(), to.len()));
        fs::write(&path, bytes).unwrap();
        let read = Case::read(&path).map(|_| ()).map_err(|e| e.to_string());
        fs::remove_file(&path).unwrap();
        read
    };
    assert_eq!(read("out.y", "out.y"), Ok(()), "{}", folder.display());
    assert!(read("cot.y", "out.z").unwrap_err().contains("out.z is there but not named"));
}

#[test]
fn a_wrong_number_is_found_and_named() {
    let tensors = [
        ("in.x".to_owned(), Stored { shape: vec![2], values: vec![1.0, -2.0], integer: false }),
        ("out.y".to_owned(), Stored { shape: vec![2], values: vec![1.0, 1e-3], integer: false }),
        ("cot.y".to_owned(), Stored { shape: vec![2], values: vec![1.0, 1.0], integer: false }),
        ("grad.x".to_owned(), Stored { shape: vec![2], values: vec![1.0, 0.0], integer: false }),
    ];
    let names = |n: &str| vec![n.to_owned()];
    let mut case = Case {
        name: "relu".into(),
        op: "relu".into(),
        attrs: Value::Null,
        tensors: tensors.into(),
        inputs: names("x"),
        outputs: names("y"),
        grads: names("x"),
        rtol: 1e-5,
        atol: 1e-5,
    };
    let how = How { context: hadal::cpu(), dtype: DType::F32, layout: Layout::RowMajor };
    let says = |case: &Case| case.run(&how).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(says(&case).starts_with("check: out.y[1]: 0, expected 0.001"), "{}", says(&case));
    case.tensors.get_mut("out.y").unwrap().values[1] = 0.0;
    assert_eq!(says(&case), "");
    case.tensors.get_mut("grad.x").unwrap().values[0] = f64::NAN;
    assert!(says(&case).starts_with("check: grad.x[0]: 1, expected NaN"), "{}", says(&case));
    case.op = "sqrt".into();
    assert!(says(&case).starts_with("check: out.y[1]: NaN"), "{}", says(&case));
    case.op = "no_such_op".into();
    assert!(says(&case).contains("no_such_op is unknown"));
    case.op = "exp".into();
    case.tensors.remove("cot.y");
    case.tensors.insert("out.y".into(), Stored { shape: vec![2], values: vec![1f64.exp(), (-2f64).exp()], integer: false });
    assert!(says(&case).contains("one cotangent is needed"));
}
