//! Damaged files: cut short, bits flipped, sizes that lie, JSON with doubles and depths, bombs. What is read of them is right or an
//! error, and takes at most a hundred times the file.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use hadal::{
    Error, Trainer, cpu,
    data::idx,
    init,
    nn::{self, Block, Dense, Sequential},
    optim::Sgd,
};

use crate::{
    cases::{self, Rng},
    kept, memory,
};

/// What a reader may take for a file of so many bytes: a hundred times as much, and its own buffers for the smallest ones.
pub fn allowed(bytes: usize) -> usize {
    100 * bytes + (256 << 10)
}

/// Fails where `read` takes more than the file allows.
pub fn bounded<T>(bytes: usize, read: impl FnOnce() -> T) -> T {
    let (out, most) = memory::peak(read);
    assert!(most <= allowed(bytes), "{most} bytes were taken for a file of {bytes}");
    out
}

/// A folder of this process and test, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("hadal-hostile-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Scratch(folder)
    }

    pub fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.join("file");
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Damages what was a good file, in one to four ways.
pub fn damage(rng: &mut Rng, good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len());
        match rng.below(8) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            2 if !bytes.is_empty() => bytes[at] = *rng.of(&[0, 0xff, 0x7f, 0x80, b'0', b'9', b'"', b'{', b'}', b'-']),
            // A length field, here or there.
            3 => {
                let huge = *rng.of(&[u64::MAX, 1 << 63, (1 << 62) - 1, 1 << 32, u64::from(u32::MAX), 1 << 20, 100_000_000, 0]);
                let huge = if rng.one_in(2) { huge.to_le_bytes() } else { huge.to_be_bytes() };
                let at = if rng.one_in(2) { 0 } else { at };
                let n = (*rng.of(&[2, 4, 8])).min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&huge[..n]);
            }
            // A part twice, or not at all.
            4 => {
                let part = bytes[at..at + rng.below(bytes.len() - at + 1)].to_vec();
                let to = rng.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            5 => drop(bytes.drain(at..at + rng.below(bytes.len() - at + 1))),
            6 => bytes.extend((0..rng.below(40)).map(|_| rng.next() as u8)),
            _ => bytes.splice(at..at, (0..rng.below(9)).map(|_| rng.next() as u8).collect::<Vec<_>>()).for_each(drop),
        }
    }
    bytes
}

/// Right, or an error that names the file.
fn named<T>(outcome: Result<T, Error>, name: &str) -> Option<T> {
    outcome.inspect_err(|e| assert!(e.to_string().contains(name), "the error does not say which file: {e}")).ok()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn images() -> Vec<u8> {
    let header = [idx::IMAGES_MAGIC, 5, 3, 4].map(u32::to_be_bytes).concat();
    header.into_iter().chain((0..60u8).map(|i| i.wrapping_mul(37))).collect()
}

fn labels() -> Vec<u8> {
    [idx::LABELS_MAGIC, 7].map(u32::to_be_bytes).concat().into_iter().chain(0..7).collect()
}

fn read_idx(bytes: &[u8]) {
    bounded(bytes.len(), || {
        if let Some(images) = named(idx::parse_images("the-file", bytes), "the-file") {
            assert_eq!(images.pixels.len(), images.count * images.rows * images.cols);
        }
        named(idx::parse_labels("the-file", bytes), "the-file");
    });
}

#[test]
fn idx_files() {
    let good = [images(), labels(), gz(&images()), gz(&labels()), [gz(&images()[..30]), gz(&images()[30..])].concat()];
    cases::run("idx_files", 20_000, |rng| {
        let which = rng.below(good.len());
        let bytes = damage(rng, &good[which]);
        read_idx(&bytes);
        // Damage inside of what is compressed well.
        if rng.one_in(4) {
            read_idx(&gz(&bytes));
        }
    });
}

#[test]
fn bombs() {
    // A thousand times as large when unpacked, and what the header says is not among it, or all of it is.
    let zeros = 4 << 20;
    for header in [
        [idx::IMAGES_MAGIC, 5, 3, 4],
        [idx::IMAGES_MAGIC, u32::MAX, u32::MAX, u32::MAX],
        [idx::IMAGES_MAGIC, 1 << 10, 1 << 10, 1 << 10],
        [idx::LABELS_MAGIC, u32::MAX, 0, 0],
        [idx::LABELS_MAGIC, 0, 0, 0],
    ] {
        let plain = [header.map(u32::to_be_bytes).concat(), vec![0; zeros]].concat();
        read_idx(&gz(&plain));
        read_idx(&gz(&gz(&plain)));
    }
    let endless = [gz(&images()), gz(&vec![0; zeros]).repeat(64)].concat();
    read_idx(&endless);
}

fn net() -> Sequential {
    Sequential::new().add(Dense::new(3)).add(Dense::new(2))
}

/// A good file of [`net`]'s parameters.
fn parameters(folder: &Scratch) -> Vec<u8> {
    let net = net();
    net.initialize(init::Xavier::new(), &cpu()).unwrap();
    nn::Forward::forward(&net, &hadal::Tensor::ones(&[1, 4], &cpu()).unwrap()).unwrap();
    let path = folder.0.join("good");
    net.save_with(&path, &[("epoch", "3")]).unwrap();
    fs::read(path).unwrap()
}

fn read_parameters(path: &Path, bytes: usize) {
    let net = net();
    bounded(bytes, || {
        named(nn::metadata(path), "file");
        named(net.load(path, &cpu()), "file");
    });
}

#[test]
fn safetensors_files() {
    let folder = Scratch::new("safetensors");
    let good = parameters(&folder);
    let header = usize::from(good[0]) | usize::from(good[1]) << 8;
    let json = String::from_utf8(good[8..8 + header].to_vec()).unwrap();
    read_parameters(&folder.file(&good), good.len());
    cases::run("safetensors_files", 4_000, |rng| {
        let bytes = match rng.below(3) {
            0 => damage(rng, &good),
            // The header's text, with the length that it then has.
            1 => {
                let text = damage(rng, json.as_bytes());
                [&(text.len() as u64).to_le_bytes()[..], &text, &good[8 + header..]].concat()
            }
            // Text that is JSON, but says other things.
            _ => {
                let text = lie(rng, &json);
                [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &good[8 + header..]].concat()
            }
        };
        read_parameters(&folder.file(&bytes), bytes.len());
    });
}

/// JSON that is well formed, mostly: entries twice, others' sizes, numbers beyond every type, depths.
fn lie(rng: &mut Rng, json: &str) -> String {
    let number =
        *rng.of(&["0", "1", "18446744073709551615", "18446744073709551616", "-1", "1e400", "4294967296", "9223372036854775807"]);
    let from = *rng.of(&["[0,", "[4", "[3", ",12]", "48]", "\"F32\"", "\"3\""]);
    let deep = 1 << rng.below(16);
    match rng.below(6) {
        0 => json.replacen(from, &format!("[{number},"), 1 + rng.below(3)),
        1 => json.replace(from, &format!("[{number},{number},{number}]")),
        2 => json.replacen('{', &format!("{{{},", json.trim().trim_matches(['{', '}']).to_owned() + "}"), 1),
        3 => json.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(deep), "]".repeat(deep)), 1),
        4 => {
            let other: &str = rng.of::<&str>(&["\"F64\"", "\"BOOL\"", "\"F4\"", "null", "{}", "\"\\ud800\""]);
            json.replace(from, other)
        }
        _ => json.replacen('{', &format!("{{\"__metadata__\":{{\"a\":\"{}\"}},", "b".repeat(deep)), 1),
    }
}

/// A file that says of itself that it is large, and takes no room on the disk: whoever would read it whole would take 3 GiB.
#[test]
fn long_files_are_refused_unread() {
    let folder = Scratch::new("long");
    let path = folder.0.join("file");
    let gzip = gz(&images());
    for start in [&images()[..], &labels(), &gzip, &[0; 8], &[0x10, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']] {
        fs::write(&path, start).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3 << 30).unwrap();
        let (_, most) = memory::peak(|| {
            assert!(named(idx::read_images(&path), "file").is_none());
            assert!(named(idx::read_labels(&path), "file").is_none());
            assert!(named(nn::metadata(&path), "file").is_none());
            assert!(named(net().load(&path, &cpu()), "file").is_none());
            let mut trainer = Trainer::new(net().parameters(), Sgd::new(0.1).momentum(0.9));
            assert!(named(trainer.load_states(&path), "file").is_none());
        });
        assert!(most < 4 << 20, "{most} bytes");
    }
}

#[test]
fn kernel_cache_files() {
    let mut rng = Rng::new(1);
    let image: Vec<u8> = (0..3000).map(|_| rng.next() as u8).collect();
    let good = kept::with_sum(&image);
    assert_eq!(kept::image(&good), Some(&image[..]));
    cases::run("kernel_cache_files", 20_000, |rng| {
        let bytes = damage(rng, &good);
        let read = bounded(bytes.len(), || kept::image(&bytes));
        assert!(read.is_none() || bytes == good, "a damaged image was taken");
    });
}

#[test]
fn tuner_files() {
    let mut table = kept::Table::new();
    for (family, n) in [("mma product", 3), ("wgmma fprop", 9), ("halo", 1)] {
        let shapes = table.entry(family.to_owned()).or_default();
        shapes.extend((0..n).map(|i| (vec![256, i, 64, 3], [1, 2, i as u32, 4, 5])));
    }
    let good = kept::print("# a title", &table);
    assert!(kept::parse(&good).as_ref() == Some(&table));
    cases::run("tuner_files", 20_000, |rng| {
        let bytes = damage(rng, good.as_bytes());
        let text = String::from_utf8_lossy(&bytes);
        // As it is, its sum is wrong; with a sum that is right the lines have to be read.
        let lines = text.rsplit_once("\n# sum").map_or(&text[..], |(lines, _)| lines);
        let summed = format!("{lines}\n# sum {}\n", kept::key(&[lines]));
        bounded(text.len(), || assert!(kept::parse(&text).is_none_or(|t| t == table), "damage was taken"));
        if let Some(read) = bounded(summed.len(), || kept::parse(&summed)) {
            assert!(kept::parse(&kept::print("# a title", &read)) == Some(read));
        }
    });
}
