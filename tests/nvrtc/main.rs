//! Every kernel file, in every variant that it declares, through the real NVRTC for sm_75 to sm_120: no GPU is needed.
//!
//! A kernel file declares what it may be compiled with in comment lines, one for each family of variants:
//!
//! ```text
//! // variants: scalar_t=float,f16; FUNCTION=RELU,TANH        every combination: 2 × 2
//! // variants: scalar_t=bf16; arch=80+                        only for sm_80 and newer
//! // variants: scalar_t=bf16; arch=90a                        only for sm_90a
//! // variants:                                                without options
//! ```
//!
//! The compiler is found as in a training program; `HADAL_NVRTC=<folder>` picks one. Without any, the test says that it
//! did not run; with `HADAL_REQUIRE_NVRTC=1` that is a failure.
//!
//! In the PTX of programs for sm_90a nothing may touch a register of a `wgmma` under way, see [`hazard`].
//!
//! What each kernel takes (registers, shared memory, spills) is read from the cubins on the way and compared with
//! `docs/kernels.tsv`, see [`report`]; no kernel may take local memory. Figures of programs that have not changed are kept in `target/tmp`.

mod cubin;
mod hazard;
mod report;

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use cubin::{HGMMA, HMMA, MULTICAST, Usage, instructions, is_cubin, usage};
use hadal::cuda::{Compiler, KERNELS, Source, compiler};
use report::{Report, cell, parse_cell};
use sha2::{Digest, Sha256};

/// The targets, where the NVRTC at hand knows them.
const ARCHS: &[(i32, &str)] = &[(75, "75"), (80, "80"), (86, "86"), (89, "89"), (90, "90a"), (100, "100a"), (120, "120")];
/// What versions of NVRTC other than the one of docs/kernels.tsv compile for, first dtypes only: the oldest, the newest, and Hopper
/// with its own words.
const ENDS: [&str; 3] = ["75", "90a", "120"];
/// Targets with every variant; the others take every second-level choice but the first dtype only, unless `HADAL_NVRTC_ALL=1`.
const FULL: &[&str] = &["75", "90a"];
/// Which share of the jobs a child process takes, as `i/n`: NVRTC compiles one program at a time in a process.
const SHARE: &str = "HADAL_NVRTC_SHARE";

/// A line `// variants:`: the options in order with their values, and the architectures.
#[derive(Debug, Default, PartialEq)]
struct Variants {
    defines: Vec<(String, Vec<String>)>,
    archs: Option<Vec<String>>,
}

/// All that is compiled: hadal's kernels, and the sources outside of `kernels/` that use its headers as a user's do.
fn sources() -> Vec<(&'static str, &'static str)> {
    let expand = |s: Source| (s.file(), &*s.expand().unwrap().leak());
    let mut all = KERNELS.to_vec();
    all.push(expand(Source::new("swish.cu", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/swish.cu")))));
    all.push(expand(Source::new("faults.cu", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/faults.cu")))));
    all.push(expand(Source::new("cluster.cu", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/cluster.cu")))));
    all.push(expand(Source::new("hopper.cu", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/hopper.cu")))));
    all
}

/// The declarations of `file`'s own text, not those of what it includes.
fn variants(file: &str, source: &str) -> Result<Vec<Variants>, String> {
    let mut own = false;
    let mut out = Vec::new();
    for line in source.lines() {
        if let Some(place) = line.strip_prefix("#line ") {
            own = place.trim_end_matches('"').rsplit(['/', '"']).next() == Some(file);
        }
        let Some(list) = line.trim().strip_prefix("// variants:").filter(|_| own) else { continue };
        let mut v = Variants::default();
        for part in list.split(';').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, values) = part.split_once('=').ok_or(format!("{file}: `{part}` is not name=value,value"))?;
            let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
            if values.iter().any(String::is_empty) {
                return Err(format!("{file}: an empty value in `{part}`"));
            }
            match name.trim() {
                "arch" => v.archs = Some(values),
                name => v.defines.push((name.to_owned(), values)),
            }
        }
        out.push(v);
    }
    if out.is_empty() { Err(format!("{file}: a line `// variants: …` is missing; see tests/nvrtc/main.rs")) } else { Ok(out) }
}

impl Variants {
    fn wants(&self, arch: &(i32, &str)) -> bool {
        let listed = |a: &String| match a.strip_suffix('+') {
            Some(least) => least.parse().is_ok_and(|least: i32| arch.0 >= least),
            None => a == arch.1,
        };
        self.archs.as_ref().is_none_or(|list| list.iter().any(listed))
    }

    /// Every combination as compiler options; only the first dtype unless `all`.
    fn options(&self, all: bool) -> Vec<Vec<String>> {
        let mut out = vec![Vec::new()];
        for (name, values) in &self.defines {
            let taken = if all || !name.ends_with("_t") { &values[..] } else { &values[..1] };
            let longer = |o: &Vec<String>| {
                let o = o.clone();
                taken.iter().map(move |v| [&o[..], &[format!("-D{name}={v}")]].concat()).collect::<Vec<_>>()
            };
            out = out.iter().flat_map(longer).collect();
        }
        out
    }
}

struct Job {
    file: &'static str,
    source: &'static str,
    arch: &'static str,
    options: Vec<String>,
}

fn jobs(compiler: &Compiler) -> Vec<Job> {
    let everything = env::var("HADAL_NVRTC_ALL").is_ok_and(|v| v == "1");
    let reference = everything || compiler.version == report::VERSION;
    let mut out = Vec::new();
    for (file, source) in sources() {
        for v in variants(file, source).unwrap_or_else(|e| panic!("{e}")) {
            let wanted = |a: &&(i32, &str)| compiler.archs().contains(&a.0) && v.wants(a) && (reference || ENDS.contains(&a.1));
            for arch in ARCHS.iter().filter(wanted) {
                for options in v.options(everything || (reference && FULL.contains(&arch.1))) {
                    out.push(Job { file, source, arch: arch.1, options });
                }
            }
        }
    }
    out
}

/// The real NVRTC, or why there is none.
fn real_compiler() -> Result<&'static Compiler, String> {
    let c = compiler()?;
    let newest = c.archs().iter().max().ok_or("NVRTC names no architecture")?;
    let probe = c.compile("probe.cu", "extern \"C\" __global__ void probe() {}", &format!("sm_{newest}"), &[]);
    match probe {
        Ok(image) if is_cubin(&image) => Ok(c),
        Ok(_) => Err("the NVRTC at hand makes code for the host: it is the emulator's".into()),
        Err(e) => Err(e.to_string()),
    }
}

#[test]
fn every_kernel_file_declares_its_variants() {
    let wrong: Vec<String> = sources().iter().filter_map(|(file, source)| variants(file, source).err()).collect();
    assert!(!KERNELS.is_empty() && wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn declarations_are_read_as_documented() {
    let text = "#line 1 \"kernels/x.cu\"\n// variants: scalar_t=float,f16; F=A,B\n#line 1 \"kernels/y.cuh\"\n// variants: N=1\n\
                #line 4 \"kernels/x.cu\"\n// variants: scalar_t=bf16; arch=80+\n// variants: arch=90a";
    let v = variants("x.cu", text).unwrap();
    assert_eq!(v.len(), 3);
    assert_eq!(v[0].options(true).len(), 4);
    assert_eq!(v[0].options(false), [["-Dscalar_t=float", "-DF=A"], ["-Dscalar_t=float", "-DF=B"]]);
    assert!(!v[1].wants(&(75, "75")) && v[1].wants(&(90, "90a")));
    assert!(!v[2].wants(&(80, "80")) && v[2].wants(&(90, "90a")));
    assert!(variants("z.cu", text).is_err() && variants("x.cu", "#line 1 \"x.cu\"\n// variants: scalar_t").is_err());
}

/// The products of tensor cores are computed there, on every architecture; those of the general kernel are not.
#[test]
fn tensor_cores_are_used() {
    let Some(compiler) = compiler_or_skip() else { return };
    let of = |file: &str, kernel: &str, arch: &str, options: &[&str], operation: u16| {
        let source = KERNELS.iter().find(|k| k.0 == file).unwrap().1;
        let options: Vec<String> = options.iter().map(|o| format!("-D{o}")).collect();
        let image = compiler.compile(file, source, &format!("sm_{arch}"), &options).unwrap();
        instructions(&image, kernel, operation).unwrap()
    };
    let count = |file: &str, kernel: &str, arch: &str, options: &[&str]| of(file, kernel, arch, options, HMMA);
    for (arch, name) in ARCHS.iter().filter(|a| compiler.archs().contains(&a.0)) {
        let mut options = vec!["TILE_M=64", "TILE_N=64", "STAGES=2", "WIDTH=16", "A_K=1", "B_K=0", "PASS=1"];
        // A warp's 32 x 32 are 2 x 4 instructions for 16 k; a step has four times as many k.
        let cases: &[(&str, &str, usize)] = match arch {
            75 => &[("scalar_t=f16", "EXACT=0", 64)],
            _ => &[
                ("scalar_t=f16", "EXACT=0", 32),
                ("scalar_t=bf16", "EXACT=0", 32),
                ("scalar_t=float", "EXACT=0", 32),
                ("scalar_t=float", "EXACT=1", 24),
            ],
        };
        for (dtype, exact, least) in cases {
            options.extend([dtype, exact]);
            for (file, kernel) in [("matmul_mma.cu", "matmul_mma"), ("conv2d_mma.cu", "conv2d_mma")] {
                let found = count(file, kernel, name, &options);
                assert!(found >= *least, "{file} for sm_{name} {options:?}: {found} instructions of tensor cores");
            }
            options.truncate(options.len() - 2);
        }
        assert_eq!(count("matmul.cu", "matmul", name, &["scalar_t=float"]), 0);
        // A warp's 64 x 32 are 16 instructions for 16 k of halves and 8 k of floats; f32 of few terms runs elsewhere.
        let cases: &[(&str, &str, usize)] = match arch {
            75 => &[("scalar_t=f16", "EXACT=0", 32)],
            _ => &[("scalar_t=bf16", "EXACT=0", 16), ("scalar_t=float", "EXACT=0", 16), ("scalar_t=float", "EXACT=1", 48)],
        };
        for (dtype, exact, products) in cases {
            for (file, kernel) in [("conv2d_stem.cu", "conv2d_stem"), ("conv2d_stem_weight.cu", "conv2d_stem_weight")] {
                for pass in ["PASS=0", "PASS=1"] {
                    let options = [*dtype, *exact, pass];
                    assert_eq!(count(file, kernel, name, &options), *products, "{file} for sm_{name} {options:?}");
                }
            }
        }
        assert_eq!(count("conv2d_stem.cu", "conv2d_stem", name, &["scalar_t=float", "EXACT=2", "PASS=0"]), 0);
    }
    // A warpgroup multiplies a step of the loop by four instructions.
    let tile = ["DOWN=2", "ACROSS=1", "COLS=256", "STAGES=4", "RESIDENT=1"];
    for dtype in ["scalar_t=f16", "scalar_t=bf16", "scalar_t=float"] {
        for (file, kernel, own) in
            [("matmul_wgmma.cu", "matmul_wgmma", &["A_K=1", "B_K=1"][..]), ("conv2d_wgmma.cu", "conv2d_wgmma", &["PASS=0"])]
        {
            assert_eq!(of(file, kernel, "90a", &[&[dtype], &tile[..], own].concat(), HGMMA), 4, "{file} {dtype}");
        }
    }
    // f32 in its own accuracy: six products for each of two times 16 steps of k.
    let six = ["scalar_t=float", "DOWN=2", "ACROSS=1", "COLS=192", "STAGES=3", "RESIDENT=1"];
    for (file, kernel, own) in [
        ("matmul_six.cu", "matmul_six", &["A_K=0", "B_K=1"][..]),
        ("conv2d_six.cu", "conv2d_six", &["PASS=0"]),
        ("conv2d_six.cu", "conv2d_six", &["PASS=2"]),
    ] {
        assert_eq!(of(file, kernel, "90a", &[&six[..], own].concat(), HGMMA), 12, "{file} {own:?}");
    }
    // One of a pair of blocks loads half of b's rows for both; alone it loads all for itself.
    for (b, cluster, loads) in [("B_K=1", "CLUSTER=2", 1), ("B_K=0", "CLUSTER=2", 1), ("B_K=1", "CLUSTER=1", 0)] {
        let options = [&["scalar_t=bf16"], &tile[..], &["A_K=1", b, cluster]].concat();
        assert_eq!(of("matmul_wgmma.cu", "matmul_wgmma", "90a", &options, MULTICAST), loads, "{options:?}");
        assert_eq!(of("matmul_wgmma.cu", "matmul_wgmma", "90a", &options, HGMMA), 4, "{options:?}");
    }
    // ResNet's first layers: a warp's 64 pixels by 32 filters, and 32 filters or taps by 64 taps.
    for (file, kernel) in
        [("stem_pool.cu", "stem_moments"), ("stem_pool.cu", "stem_pool"), ("stem_pool_weight.cu", "stem_pool_weight")]
    {
        assert_eq!(count(file, kernel, "90a", &["scalar_t=bf16", "EXACT=0"]), 16, "{kernel}");
    }
    // f32 split into bf16: three products for each of two times 16 pixels.
    let (split, halo) = (["scalar_t=float", "PASS=2"], ["DOWN=1", "ACROSS=3", "COLS=192", "STAGES=2", "RESIDENT=1"]);
    for (file, kernel, tile) in [("conv2d_wgmma.cu", "conv2d_wgmma", &tile), ("conv3x3_wgmma.cu", "conv3x3_wgmma", &halo)] {
        assert_eq!(of(file, kernel, "90a", &[&split[..], tile].concat(), HGMMA), 6, "{file}");
    }
}

/// The real NVRTC; without it, that is said.
fn compiler_or_skip() -> Option<&'static Compiler> {
    match real_compiler() {
        Ok(c) => Some(c),
        Err(e) if env::var("HADAL_REQUIRE_NVRTC").is_ok_and(|v| v == "1") => panic!("HADAL_REQUIRE_NVRTC is set: {e}"),
        Err(e) => {
            // Past libtest, which keeps back what eprintln! writes: a skip must not read as a pass.
            let _ = writeln!(std::io::stderr(), "the kernels are NOT compiled by the real NVRTC: {e}");
            None
        }
    }
}

#[test]
fn every_variant_compiles_for_every_architecture() {
    let Some(compiler) = compiler_or_skip() else { return };
    let jobs = jobs(compiler);
    if let Ok(share) = env::var(SHARE) {
        let (i, n) = share.split_once('/').unwrap();
        return child(compiler, &jobs, i.parse().unwrap(), n.parse().unwrap());
    }
    let start = Instant::now();
    let n = std::thread::available_parallelism().map_or(1, |n| n.get()).min(16);
    let spawn = |i: usize| {
        Command::new(env::current_exe().unwrap())
            .args(["every_variant_compiles_for_every_architecture", "--exact", "--nocapture"])
            .env(SHARE, format!("{i}/{n}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..n).map(spawn).collect();
    let (mut done, mut kept, mut failures, mut by_file) = (0, 0, Vec::new(), BTreeMap::<String, (u64, u64)>::new());
    let mut now = Report::default();
    for c in children {
        let output = c.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in text.lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["compiled", file, ms] => {
                    let entry = by_file.entry(file.to_owned()).or_insert((0, 0));
                    *entry = (entry.0 + 1, entry.1 + ms.parse::<u64>().unwrap());
                    done += 1;
                }
                ["kept", file] => {
                    by_file.entry(file.to_owned()).or_insert((0, 0)).0 += 1;
                    kept += 1;
                }
                // Those of examples and tests are no figures to keep.
                ["kernel", file, options, arch, kernel, figures] if KERNELS.iter().any(|k| k.0 == file) => {
                    now.add(file, options, arch, parse_cell(kernel, figures).unwrap());
                }
                _ => {}
            }
        }
        if !output.status.success() {
            let died =
                || format!("{}, in\n{}", output.status, text.lines().rfind(|l| l.starts_with("begun")).unwrap_or("no program"));
            failures.push(text.split_once("FAILED ").map_or_else(died, |(_, log)| log.to_owned()));
        }
    }
    assert!(failures.is_empty(), "NVRTC {:?} refused:\n{}", compiler.version, failures.join("\n"));
    assert!(!jobs.is_empty() && done + kept == jobs.len(), "{done} and {kept} of {} programs", jobs.len());
    let (seconds, files) = (start.elapsed().as_secs_f64(), sources().len());
    println!("NVRTC {:?}: {files} files, {done} programs compiled in {seconds:.1} s, {kept} unchanged", compiler.version);
    for (file, (programs, ms)) in by_file {
        println!("  {file}: {programs} in {:.1} s", ms as f64 / 1e3);
    }
    compare(compiler, &now);
}

/// Holds the kernels' figures against the stored ones.
fn compare(compiler: &Compiler, now: &Report) {
    let archs: Vec<&str> = ARCHS.iter().map(|a| a.1).collect();
    if compiler.version != report::VERSION {
        return println!("{} kernels; figures are kept of NVRTC {:?} and not compared", now.kernels(), report::VERSION);
    }
    let spilled = now.spills();
    assert!(spilled.is_empty(), "{} kernels take local memory:\n{}", spilled.len(), spilled.join("\n"));
    if env::var(report::SETTING).is_ok_and(|v| v == "write") {
        return now.write(&archs);
    }
    let stored = Report::stored();
    let worse = now.regressions(&stored);
    println!("{} kernels, {} figures differ from docs/kernels.tsv", now.kernels(), now.changes(&stored));
    assert!(
        worse.is_empty(),
        "{} kernels take more than docs/kernels.tsv says. If it is meant, store the new figures with\n    \
         {}=write cargo test --release --test nvrtc\n{}",
        worse.len(),
        report::SETTING,
        worse.join("\n")
    );
}

/// What ptxas says of wgmma that it could not leave asynchronous (advisories C7510 to C7519, C7508 of setmaxnreg): these
/// kernels would be right, and slow.
fn advice(log: &str) -> Vec<&str> {
    log.lines().filter(|l| l.contains("(C75")).collect()
}

#[test]
fn wgmma_that_ptxas_makes_wait_is_noticed() {
    let Some(compiler) = compiler_or_skip() else { return };
    let waits = r#"#include "ptx_hopper.cuh"
extern "C" __global__ void __launch_bounds__(128) waits(float* y, int n) {
  extern __shared__ char t[];
  float d[64];
  for (int i = 0; i < 64; ++i) d[i] = y[i];
  wgmma_fence();
  for (int i = 0; i < n; ++i) {
    unsigned long long a = wgmma_descriptor(t + i * 32, 0, 1024, 128), b = wgmma_descriptor(t, 0, 1024, 128);
    wgmma_bf16<128>(d, a, b, 1);
    d[3] += 1;  // under way
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < 64; ++i) y[i] = d[i];
}"#;
    let source = Source::new("waits.cu", waits).expand().unwrap();
    let log = compiler.compile_with_log("waits.cu", &source, "sm_90a", &[]).unwrap().1;
    assert!(!advice(&log).is_empty(), "{log}");
}

impl Job {
    fn usage(&self, compiler: &Compiler) -> Result<Vec<Usage>, String> {
        let whose = |e: String| format!("{} sm_{} {:?}: {e}", self.file, self.arch, self.options);
        let image = compiler.compile_with_log(self.file, self.source, &format!("sm_{}", self.arch), &self.options);
        let (image, log) = image.map_err(|e| whose(e.to_string()))?;
        let advice = advice(&log);
        if !advice.is_empty() {
            return Err(whose(format!("wgmma does not run as written:\n{}", advice.join("\n"))));
        }
        if !is_cubin(&image) {
            return Err(whose("the image is no cubin".into()));
        }
        if self.multiplies() {
            let ptx = compiler.compile(self.file, self.source, &format!("compute_{}", self.arch), &self.options);
            let touched = hazard::touched_early(&String::from_utf8_lossy(&ptx.map_err(|e| whose(e.to_string()))?));
            if !touched.is_empty() {
                return Err(whose(format!("registers of wgmma are touched before the wait:\n{}", touched.join("\n"))));
            }
        }
        usage(&image).ok_or_else(|| whose("the cubin's figures are not found; see cubin.rs".into()))
    }

    /// Whether it may multiply by warpgroups: its PTX is then read, too.
    fn multiplies(&self) -> bool {
        // The header has the word once.
        self.arch == "90a" && self.source.matches("wgmma_commit()").count() > 1
    }

    /// Where the figures are kept, by everything that they depend on; nowhere but in a checkout.
    fn place(&self, compiler: &Compiler) -> Option<PathBuf> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = compiler.file.as_ref().and_then(|f| Some((f, fs::metadata(f).ok()?.len())));
        // Of programs whose PTX was not read, nothing else has changed.
        let read = if self.multiplies() { "ptx" } else { "" };
        let all = format!("{:?} {library:?} {}{read} {:?} {}", compiler.version, self.arch, self.options, self.source);
        let key: String = Sha256::digest(all).iter().map(|b| format!("{b:02x}")).collect();
        folder.is_dir().then(|| folder.join("nvrtc").join(key))
    }
}

/// Does every n-th job and prints a line for each, and for each kernel in it.
fn child(compiler: &Compiler, jobs: &[Job], i: usize, n: usize) {
    // The test harness has written the test's name without ending the line.
    let mut out = std::io::stdout().lock();
    writeln!(out).unwrap();
    let mut failures = Vec::new();
    for job in jobs.iter().skip(i).step_by(n) {
        let start = Instant::now();
        let place = job.place(compiler);
        let mut lines = place.as_ref().and_then(|p| fs::read_to_string(p).ok()).unwrap_or_default();
        if lines.is_empty() {
            // A compiler that dies takes this process along.
            writeln!(out, "begun\t{}\t{}\t{}", job.file, job.options.join(" "), job.arch).unwrap();
            let kernels = match job.usage(compiler) {
                Ok(kernels) => kernels,
                Err(e) => {
                    failures.push(e);
                    continue;
                }
            };
            let options = job.options.join(" ").replace("-D", "");
            for u in kernels {
                lines += &format!("kernel\t{}\t{options}\t{}\t{}\t{}\n", job.file, job.arch, u.kernel, cell(&u));
            }
            if let Some(place) = place {
                // Without it the next run is only slower.
                let _ = fs::create_dir_all(place.parent().unwrap());
                let _ = hadal::files::write(&place, lines.as_bytes());
            }
            writeln!(out, "compiled\t{}\t{}", job.file, start.elapsed().as_millis()).unwrap();
        } else {
            writeln!(out, "kept\t{}", job.file).unwrap();
        }
        write!(out, "{lines}").unwrap();
    }
    if !failures.is_empty() {
        writeln!(out, "FAILED {}", failures.join("\n")).unwrap();
        drop(out);
        std::process::exit(1);
    }
}
