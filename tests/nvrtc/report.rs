//! What every kernel takes on every architecture, kept in `docs/kernels.tsv` and compared with what NVRTC makes now.
//!
//! A row is a kernel in one variant, a column an architecture. A cell is the number of registers, then `s` and the bytes of shared
//! memory, then `l` and the bytes of local memory (spills) where there are any: `40 s4096 l16`. The figures are those of one
//! version of NVRTC; with another one nothing is compared. They are those of `ptxas -v`, but for the KiB of shared memory that
//! sm_90 and newer keep for themselves.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use crate::cubin::Usage;

/// The NVRTC whose figures are kept.
pub const VERSION: (i32, i32) = (12, 9);
/// `write` stores the figures instead of comparing them.
pub const SETTING: &str = "HADAL_KERNEL_REPORT";
const STORED: &str = include_str!("../../docs/kernels.tsv");

/// File, kernel, options.
type Row = (String, String, String);

/// Figures by row and architecture.
#[derive(Debug, Default, PartialEq)]
pub struct Report(BTreeMap<Row, BTreeMap<String, Usage>>);

impl Report {
    pub fn add(&mut self, file: &str, options: &str, arch: &str, usage: Usage) {
        let row = (file.to_owned(), usage.kernel.clone(), options.to_owned());
        self.0.entry(row).or_default().insert(arch.to_owned(), usage);
    }

    pub fn stored() -> Self {
        Self::parse(STORED).unwrap_or_else(|line| panic!("docs/kernels.tsv: `{line}` is no row of it; write it anew"))
    }

    fn parse(text: &str) -> Result<Self, &str> {
        let mut lines = text.lines().filter(|l| !l.starts_with('#'));
        let archs: Vec<&str> = lines.next().unwrap_or_default().split('\t').skip(3).collect();
        let mut out = Self::default();
        for line in lines {
            let mut fields = line.split('\t');
            let (Some(file), Some(kernel), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
                return Err(line);
            };
            for (arch, cell) in archs.iter().zip(fields).filter(|(_, cell)| !cell.is_empty()) {
                out.add(file, options, arch, parse_cell(kernel, cell).ok_or(line)?);
            }
        }
        Ok(out)
    }

    fn print(&self, archs: &[&str]) -> String {
        let mut out = format!(
            "# Registers, s: shared memory, l: local memory (spills) of each kernel, from NVRTC {}.{}.\n\
             # Compared by tests/nvrtc; written by: {SETTING}=write cargo test --release --test nvrtc\n",
            VERSION.0, VERSION.1
        );
        let _ = writeln!(out, "file\tkernel\toptions\t{}", archs.join("\t"));
        for ((file, kernel, options), cells) in &self.0 {
            let cells: Vec<String> = archs.iter().map(|a| cells.get(*a).map(cell).unwrap_or_default()).collect();
            let _ = writeln!(out, "{file}\t{kernel}\t{options}\t{}", cells.join("\t").trim_end_matches('\t'));
        }
        out
    }

    /// Stores the figures in the repository.
    pub fn write(&self, archs: &[&str]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kernels.tsv");
        hadal::files::write(&path, self.print(archs).as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        println!("{} kernels written to {}", self.0.len(), path.display());
    }

    /// The kernels that take local memory: registers that were spilled, or an array that could not stay in them. None has a reason to.
    pub fn spills(&self) -> Vec<String> {
        let spilled = |(row, cells): (&Row, &BTreeMap<String, Usage>)| {
            let of = |(arch, u): (&String, &Usage)| (u.stack > 0).then(|| format!("{row:?} for sm_{arch}: {}", cell(u)));
            cells.iter().filter_map(of).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(spilled).collect()
    }

    /// What is worse than in `old`, or not in it: registers or shared memory by more than a tenth.
    pub fn regressions(&self, old: &Self) -> Vec<String> {
        let mut out = Vec::new();
        let rows: Vec<&Row> = old.0.keys().filter(|row| !self.0.contains_key(*row)).collect();
        out.extend(rows.iter().map(|row| format!("{row:?} is stored, but there is no such kernel")));
        for (row, cells) in &self.0 {
            for (arch, new) in cells {
                let Some(old) = old.0.get(row).and_then(|cells| cells.get(arch)) else {
                    out.push(format!("{row:?} for sm_{arch} is not stored"));
                    continue;
                };
                let more = |new: u32, old: u32| u64::from(new) * 10 > u64::from(old) * 11;
                if more(new.registers, old.registers) || more(new.shared, old.shared) {
                    out.push(format!("{row:?} for sm_{arch}: {}, stored is {}", cell(new), cell(old)));
                }
            }
        }
        out
    }

    /// How many figures differ from those of `old`.
    pub fn changes(&self, old: &Self) -> usize {
        let differ = |(row, cells): (&Row, &BTreeMap<String, Usage>)| {
            cells.iter().filter(|(arch, new)| old.0.get(row).and_then(|c| c.get(*arch)) != Some(new)).count()
        };
        self.0.iter().map(differ).sum()
    }

    pub fn kernels(&self) -> usize {
        self.0.len()
    }
}

/// A cell of the table.
pub fn cell(u: &Usage) -> String {
    let part = |sign: &str, n: u32| if n > 0 { format!(" {sign}{n}") } else { String::new() };
    format!("{}{}{}", u.registers, part("s", u.shared), part("l", u.stack))
}

pub fn parse_cell(kernel: &str, cell: &str) -> Option<Usage> {
    let mut words = cell.split(' ');
    let registers = words.next()?.parse().ok()?;
    let mut u = Usage { kernel: kernel.to_owned(), registers, ..Usage::default() };
    for word in words {
        match word.split_at_checked(1)? {
            ("s", n) => u.shared = n.parse().ok()?,
            ("l", n) => u.stack = n.parse().ok()?,
            _ => return None,
        }
    }
    Some(u)
}

#[test]
fn a_kernel_that_takes_more_is_reported() {
    let report = |cells: &[(&str, &str)]| {
        let mut out = Report::default();
        for (kernel, c) in cells {
            out.add("x.cu", "scalar_t=float", "75", parse_cell(kernel, c).unwrap());
        }
        out
    };
    let old = report(&[("a", "40 s4096"), ("b", "20")]);
    assert_eq!(Report::parse(&old.print(&["75", "80"])), Ok(report(&[("a", "40 s4096"), ("b", "20")])));
    assert_eq!(report(&[("a", "44 s4500"), ("b", "16")]).regressions(&old), Vec::<String>::new());
    assert_eq!(report(&[("a", "44 s4500"), ("b", "16")]).changes(&old), 2);
    let spilled = report(&[("a", "40 s4096 l8"), ("b", "20")]).spills();
    assert!(spilled.len() == 1 && spilled[0].contains("l8") && old.spills().is_empty(), "{spilled:?}");
    for worse in ["45 s4096", "40 s4506"] {
        let found = report(&[("a", worse), ("b", "20")]).regressions(&old);
        assert!(found.len() == 1 && found[0].contains(worse), "{found:?}");
    }
    assert_eq!(report(&[("a", "40 s4096")]).regressions(&old).len(), 1);
    assert_eq!(report(&[("a", "40 s4096"), ("b", "20"), ("c", "8")]).regressions(&old).len(), 1);
}
