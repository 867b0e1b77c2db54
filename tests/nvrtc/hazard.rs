//! The rule of `wgmma` that no compiler enforces: its accumulators and the registers of A may not be touched by anything else between the
//! issue and the `wgmma.wait_group` that covers it (PTX ISA, "Asynchronous Warpgroup Level Matrix Operations"). Followed through the PTX along
//! every branch; no GPU and no run are needed.

use std::collections::{BTreeMap, BTreeSet};

type Registers<'a> = BTreeSet<&'a str>;

/// What may be under way at a place: registers of products that are not committed, and of each group that was, the oldest first.
#[derive(Clone, Default, PartialEq)]
struct Flight<'a> {
    open: Registers<'a>,
    groups: Vec<Registers<'a>>,
}

/// More groups than a kernel has under way; what is older counts as one.
const GROUPS: usize = 8;

impl<'a> Flight<'a> {
    fn commit(&mut self) {
        self.groups.push(std::mem::take(&mut self.open));
        if self.groups.len() > GROUPS {
            let oldest = self.groups.remove(0);
            self.groups[0].extend(oldest);
        }
    }

    fn wait(&mut self, pending: usize) {
        let done = self.groups.len().saturating_sub(pending);
        self.groups.drain(..done);
    }

    /// Where two ways meet, either may have been taken: by age, counted from the newest.
    fn join(&mut self, other: &Flight<'a>) {
        self.open.extend(&other.open);
        while self.groups.len() < other.groups.len() {
            self.groups.insert(0, Registers::new());
        }
        for (mine, theirs) in self.groups.iter_mut().rev().zip(other.groups.iter().rev()) {
            mine.extend(theirs);
        }
    }

    fn has(&self, register: &str) -> bool {
        self.open.contains(register) || self.groups.iter().any(|g| g.contains(register))
    }
}

struct Instruction<'a> {
    text: &'a str,
    opcode: &'a str,
    guarded: bool,
}

/// A line for each instruction of `ptx` that touches a register of a `wgmma` under way.
pub fn touched_early(ptx: &str) -> Vec<String> {
    let code: String = ptx
        .lines()
        .map(|l| l.split("//").next().unwrap_or_default().trim())
        .filter(|l| ![".loc", ".file", ".pragma", ".section"].iter().any(|d| l.starts_with(d)))
        .flat_map(|l| [l, " "])
        .collect();
    let mut found = Vec::new();
    let starts: Vec<usize> = code.match_indices(".entry ").chain(code.match_indices(".func ")).map(|m| m.0).collect();
    let mut starts: Vec<usize> = starts.into_iter().chain([code.len()]).collect();
    starts.sort_unstable();
    for w in starts.windows(2) {
        let function = &code[w[0]..w[1]];
        if function.contains("wgmma.mma_async") {
            let body = function.find('{').map_or("", |b| &function[b + 1..]);
            let name = function.split_whitespace().nth(1).unwrap_or_default().split('(').next().unwrap_or_default();
            found.extend(of_function(body).into_iter().map(|text| format!("{name}: {text}")));
        }
    }
    found
}

fn of_function(body: &str) -> BTreeSet<String> {
    let (mut code, mut labels) = (Vec::new(), BTreeMap::new());
    for statement in body.split(';') {
        let mut text = statement.trim_start_matches(|c: char| c.is_whitespace() || c == '{' || c == '}');
        // Labels; `shared::cta` has two colons.
        while let Some((label, rest)) = text.split_once(':').filter(|(l, r)| is_name(l) && !r.starts_with(':')) {
            labels.insert(label, code.len());
            text = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '{' || c == '}');
        }
        if text.is_empty() || text.starts_with('.') {
            continue;
        }
        let guarded = text.starts_with('@');
        let plain = if guarded { text.split_once(char::is_whitespace).map_or("", |t| t.1.trim_start()) } else { text };
        code.push(Instruction {
            text: text.trim(),
            opcode: plain.split(char::is_whitespace).next().unwrap_or_default(),
            guarded,
        });
    }
    // To a fixed point: what may be under way before each instruction.
    let mut before: Vec<Option<Flight>> = vec![None; code.len()];
    let (mut todo, mut touched) = (vec![(0, Flight::default())], BTreeSet::new());
    while let Some((at, flight)) = todo.pop() {
        let Some(i) = code.get(at) else { continue };
        let mut now = before[at].clone().unwrap_or_default();
        now.join(&flight);
        if before[at].as_ref() == Some(&now) {
            continue;
        }
        before[at] = Some(now.clone());
        let base = i.opcode.split('.').next().unwrap_or_default();
        if i.opcode.starts_with("wgmma.mma_async") {
            now.open.extend(of_product(i.text));
        } else if i.opcode.starts_with("wgmma.commit_group") {
            now.commit();
        } else if i.opcode.starts_with("wgmma.wait_group") {
            now.wait(i.text.rsplit(char::is_whitespace).next().and_then(|n| n.parse().ok()).unwrap_or(0));
        } else if words(i.text).any(|w| now.has(w)) {
            touched.insert(i.text.to_owned());
        }
        let mut next = |to: usize| todo.push((to, now.clone()));
        if base == "bra"
            && let Some(&to) = words(i.text).last().and_then(|label| labels.get(label))
        {
            next(to);
        }
        if i.guarded || !["bra", "ret", "exit", "trap"].contains(&base) {
            next(at + 1);
        }
    }
    touched
}

fn is_name(s: &str) -> bool {
    !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.'))).filter(|w| !w.is_empty())
}

/// The accumulators, and the registers of A where it is not a descriptor: what stands in braces.
fn of_product(text: &str) -> Vec<&str> {
    text.split('{').skip(1).filter_map(|part| part.split('}').next()).flat_map(words).collect()
}

const PRODUCT: &str = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd1, %rd2, p, 1, 1, 0, 0;";

fn kernel(body: &str) -> Vec<String> {
    touched_early(&format!(".visible .entry k(\n.param .u64 k_param_0\n)\n{{\n{}\nret;\n}}", body.replace("PRODUCT", PRODUCT)))
}

#[test]
fn registers_of_a_product_under_way_are_found() {
    let wait = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;";
    // In order, and with the products of one sum after one another.
    assert!(kernel(&format!("PRODUCT PRODUCT {wait} add.f32 %f9, %f1, %f2;")).is_empty());
    // Read, or written, before the wait; as the compiler moves what an asm without operands does not hold.
    assert_eq!(kernel(&format!("PRODUCT mov.b32 %r1, %f3; {wait}")), ["k: mov.b32 %r1, %f3"]);
    assert_eq!(kernel(&format!("PRODUCT mov.f32 %f4, 0f00000000; {wait}")), ["k: mov.f32 %f4, 0f00000000"]);
    assert_eq!(
        kernel(&format!("{} mov.u32 %r7, 0; {wait}", PRODUCT.replace("%rd1", "{%r5, %r6, %r7, %r8}"))),
        ["k: mov.u32 %r7, 0"]
    );
    // A wait that leaves a group under way covers those before it only.
    let two = |pending| {
        let second = PRODUCT.replace("%f", "%f2");
        format!(
            "PRODUCT wgmma.commit_group.sync.aligned; {second} wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned {pending};"
        )
    };
    assert!(kernel(&format!("{} mov.b32 %r1, %f1;", two(1))).is_empty());
    assert_eq!(kernel(&format!("{} mov.b32 %r1, %f21;", two(1))).len(), 1);
    assert_eq!(kernel(&format!("{} mov.b32 %r1, %f1;", two(2))).len(), 1);
    // Around a loop, and past a branch that skips the wait.
    let round = "$L__BB0_1:\nmov.b32 %r1, %f1;\nPRODUCT wgmma.commit_group.sync.aligned;\n@%p1 bra $L__BB0_1;\nwgmma.wait_group.sync.aligned 0;";
    assert_eq!(kernel(round), ["k: mov.b32 %r1, %f1"]);
    assert_eq!(kernel(&format!("PRODUCT @%p2 bra $L__BB0_2; {wait}\n$L__BB0_2:\nst.global.f32 [%rd3], %f1;")).len(), 1);
    assert!(
        kernel(&format!("PRODUCT {wait} bra.uni $L__BB0_2;\nmov.b32 %r1, %f1;\n$L__BB0_2:\nst.global.f32 [%rd3], %f1;"))
            .is_empty()
    );
}
