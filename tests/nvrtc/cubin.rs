//! What a kernel takes, read from the cubin that NVRTC made: no other tool is needed.
//!
//! A cubin is an ELF file for 64 bits. The section `.nv.info` lists attributes of the kernels, each a word (format, attribute,
//! size) and that many bytes, and names a kernel by its symbol; `.nv.shared.<kernel>` has the size of its static shared memory.

/// What one kernel takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block, in bytes, with the 1024 that sm_90 and newer keep for themselves.
    pub shared: u32,
    /// Local memory of a thread in bytes: what was spilled, and arrays that are indexed at run time.
    pub stack: u32,
}

/// The machine of an ELF file; 190 is CUDA's. (The emulator's NVRTC makes code for the host.)
pub fn is_cubin(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF") && number(image, 18, 2) == Some(190)
}

/// The kernels of a cubin by name.
pub fn usage(image: &[u8]) -> Option<Vec<Usage>> {
    let sections = sections(image)?;
    let symbols = sections.iter().find(|s| s.kind == SYMBOLS)?;
    let names = sections.get(symbols.link)?;
    let symbol = |i: u64| text(names.bytes(image)?, number(symbols.bytes(image)?, i as usize * 24, 4)? as usize);
    let mut out: Vec<Usage> = sections
        .iter()
        .filter_map(|s| s.name.strip_prefix(".text."))
        .map(|kernel| Usage { kernel: kernel.to_owned(), ..Usage::default() })
        .collect();
    let info = sections.iter().find(|s| s.name == ".nv.info")?.bytes(image)?;
    let mut at = 0;
    while at + 4 <= info.len() {
        let (format, attribute) = (info[at], info[at + 1]);
        // Other formats carry their value in the word itself.
        let size = if format == 4 { number(info, at + 2, 2)? as usize } else { 0 };
        if let (4, REGISTERS | FRAME) = (format, attribute) {
            let (name, value) = (symbol(number(info, at + 4, 4)?)?, number(info, at + 8, 4)? as u32);
            if let Some(u) = out.iter_mut().find(|u| u.kernel == name) {
                *(if attribute == REGISTERS { &mut u.registers } else { &mut u.stack }) = value;
            }
        }
        at += 4 + size;
    }
    for s in &sections {
        let kernel = s.name.strip_prefix(".nv.shared.");
        if let Some(u) = out.iter_mut().find(|u| Some(&*u.kernel) == kernel) {
            u.shared = s.size as u32;
        }
    }
    out.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    // A kernel always has registers: none found means that this reader does not know the format.
    (!out.is_empty() && out.iter().all(|u| u.registers > 0)).then_some(out)
}

/// The instruction of a warp that multiplies matrices of 16-bit or tf32 elements on tensor cores.
pub const HMMA: u16 = 0x23c;
/// That of a warpgroup (wgmma), both operands in shared memory.
pub const HGMMA: u16 = 0x9f0;
/// That of the copy engine that loads a box for all blocks of a cluster; for one block it is another.
pub const MULTICAST: u16 = 0x3b4;

/// How many instructions of a kernel are `operation`.
///
/// Since sm_70 an instruction has 16 bytes, and its lowest 12 bits are the operation.
pub fn instructions(image: &[u8], kernel: &str, operation: u16) -> Option<usize> {
    let sections = sections(image)?;
    let code = sections.iter().find(|s| s.name.strip_prefix(".text.") == Some(kernel))?.bytes(image)?;
    Some(code.chunks_exact(16).filter(|i| u16::from_le_bytes([i[0], i[1]]) & 0xfff == operation).count())
}

const SYMBOLS: u64 = 2;
const NO_BITS: u64 = 8;
const REGISTERS: u8 = 0x2f;
const FRAME: u8 = 0x11;

struct Section {
    name: String,
    kind: u64,
    offset: usize,
    size: usize,
    link: usize,
}

impl Section {
    fn bytes<'a>(&self, image: &'a [u8]) -> Option<&'a [u8]> {
        if self.kind == NO_BITS { None } else { image.get(self.offset..self.offset.checked_add(self.size)?) }
    }
}

fn sections(image: &[u8]) -> Option<Vec<Section>> {
    let (table, size) = (number(image, 0x28, 8)? as usize, number(image, 0x3a, 2)? as usize);
    let (count, names) = (number(image, 0x3c, 2)? as usize, number(image, 0x3e, 2)? as usize);
    let header = |i: usize, field: usize, bytes: usize| number(image, table + i * size + field, bytes);
    let names = image.get(header(names, 0x18, 8)? as usize..)?;
    let section = |i: usize| {
        Some(Section {
            name: text(names, header(i, 0, 4)? as usize)?,
            kind: header(i, 4, 4)?,
            offset: header(i, 0x18, 8)? as usize,
            size: header(i, 0x20, 8)? as usize,
            link: header(i, 0x28, 4)? as usize,
        })
    };
    (0..count).map(section).collect()
}

/// The little-endian number of `bytes` bytes at `at`.
fn number(image: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let field = image.get(at..at.checked_add(bytes)?)?;
    Some(field.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
}

/// The text at `at` up to its NUL.
fn text(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|&b| b == 0)?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[test]
fn damaged_images_are_no_cubins() {
    for image in [&b""[..], b"\x7fELF", &[0x7f; 200], &[0xff; 64]] {
        assert!(!is_cubin(image) && usage(image).is_none());
    }
}
