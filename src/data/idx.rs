//! Idx files, the format of MNIST and its descendants, plain or gzip-compressed.
//!
//! A file is a big-endian header and then bytes: for images the magic number 2051, the count, the rows, the columns and
//! `count * rows * cols` pixels; for labels the magic number 2049, the count and `count` labels. Whether a file is
//! compressed is told by its first two bytes (`1f 8b`), not by its name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::files;

/// The number at the start of an idx file of images.
pub const IMAGES_MAGIC: u32 = 2051;

/// The number at the start of an idx file of labels.
pub const LABELS_MAGIC: u32 = 2049;

/// What a compressed file may unpack to, in times its own size. Photographs reach 5 and deflate 1032, so what is beyond is a bomb, or
/// can be unpacked first.
const MAX_RATIO: u64 = 64;

/// What a compressed file of any size may unpack to, such as labels that are all the same.
const ALWAYS: u64 = 1 << 16;

/// Grey images of one size, as an idx file holds them.
#[derive(Clone, PartialEq, Eq)]
pub struct IdxImages {
    /// How many images.
    pub count: usize,
    /// The height of each.
    pub rows: usize,
    /// The width of each.
    pub cols: usize,
    /// `count * rows * cols` bytes, image after image, row after row.
    pub pixels: Vec<u8>,
}

impl std::fmt::Debug for IdxImages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<IdxImages of {}, {}x{}>", self.count, self.rows, self.cols)
    }
}

/// Reads an idx file of images, plain or gzip-compressed.
///
/// # Errors
///
/// [`Error::Io`] where the file cannot be read; [`Error::Data`], which names the file and the sizes, where it is empty,
/// truncated, corrupt, longer than its header says, or not an idx file of images.
pub fn read_images(path: impl AsRef<Path>) -> Result<IdxImages> {
    let path = path.as_ref();
    let (reader, len) = open(path)?;
    images(&path.display().to_string(), reader, len)
}

/// Reads an idx file of labels, plain or gzip-compressed.
///
/// # Errors
///
/// As [`read_images`]. The labels' range isn't checked: see [`check_labels`].
pub fn read_labels(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let (reader, len) = open(path)?;
    labels(&path.display().to_string(), reader, len)
}

/// Reads images from an idx file's bytes, plain or gzip-compressed; `name` is used in errors.
///
/// # Errors
///
/// [`Error::Data`], as [`read_images`].
///
/// ```
/// # use hadal::data::idx;
/// let bytes = [0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9];
/// let images = idx::parse_images("two pixels", &bytes)?;
/// assert_eq!((images.count, images.rows, images.cols), (1, 1, 2));
/// assert_eq!(images.pixels, [7, 9]);
/// let error = idx::parse_images("two pixels", &bytes[..17]).unwrap_err();
/// assert!(error.to_string().starts_with("two pixels: 18 bytes expected, 17 found"));
/// # Ok::<(), hadal::Error>(())
/// ```
pub fn parse_images(name: &str, bytes: &[u8]) -> Result<IdxImages> {
    images(name, bytes, bytes.len() as u64)
}

/// Reads labels from an idx file's bytes, plain or gzip-compressed; `name` is used in errors.
///
/// # Errors
///
/// [`Error::Data`], as [`read_labels`].
pub fn parse_labels(name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    labels(name, bytes, bytes.len() as u64)
}

/// Checks that there are as many labels as images and that each is below `classes`; `name` is the label file's.
///
/// # Errors
///
/// [`Error::Data`] with both counts, or with the first bad label and its place.
pub fn check_labels(name: &str, labels: &[u8], images: usize, classes: usize) -> Result<()> {
    if labels.len() != images {
        return Err(data(name, format!("{images} labels expected (one for each image), {} found", labels.len())));
    }
    match labels.iter().enumerate().find(|&(_, &label)| usize::from(label) >= classes) {
        Some((i, label)) => {
            Err(data(name, format!("label {label} of item {i} (byte {}) is not below {classes}", i + HEADER_LABELS)))
        }
        None => Ok(()),
    }
}

/// Writes an idx file of images beside its place and then moves it there; gzip-compressed where the name ends in `.gz`.
///
/// # Errors
///
/// [`Error::Invalid`] where `pixels` isn't a whole number of `rows * cols` images; [`Error::Io`] where writing fails.
pub fn write_images(path: impl AsRef<Path>, rows: usize, cols: usize, pixels: &[u8]) -> Result<()> {
    let count = match rows.checked_mul(cols) {
        Some(size) if size > 0 && pixels.len().is_multiple_of(size) => pixels.len() / size,
        _ => return Err(invalid(format!("{} pixels are not a whole number of {rows}x{cols} images", pixels.len()))),
    };
    write(path.as_ref(), &[IMAGES_MAGIC, dim(count)?, dim(rows)?, dim(cols)?], pixels)
}

/// Writes an idx file of labels beside its place and then moves it there; gzip-compressed where the name ends in `.gz`.
///
/// # Errors
///
/// [`Error::Io`] where writing fails.
pub fn write_labels(path: impl AsRef<Path>, labels: &[u8]) -> Result<()> {
    write(path.as_ref(), &[LABELS_MAGIC, dim(labels.len())?], labels)
}

const HEADER_IMAGES: usize = 16;
const HEADER_LABELS: usize = 8;

fn images(name: &str, reader: impl BufRead, stored: u64) -> Result<IdxImages> {
    let (head, pixels) = decode::<HEADER_IMAGES>(name, reader, stored, IMAGES_MAGIC)?;
    let [_, count, rows, cols] = fields(&head);
    if count == 0 || rows == 0 || cols == 0 {
        return Err(data(name, format!("no pixels: the header declares {count} images of {rows}x{cols}")));
    }
    Ok(IdxImages { count: count as usize, rows: rows as usize, cols: cols as usize, pixels })
}

fn labels(name: &str, reader: impl BufRead, stored: u64) -> Result<Vec<u8>> {
    let (_, labels) = decode::<HEADER_LABELS>(name, reader, stored, LABELS_MAGIC)?;
    Ok(labels)
}

/// The big-endian numbers of a header (as many as asked for, zero where the header is shorter).
fn fields<const N: usize>(head: &[u8]) -> [u32; N] {
    let mut out = [0; N];
    for (field, bytes) in out.iter_mut().zip(head.as_chunks::<4>().0) {
        *field = u32::from_be_bytes(*bytes);
    }
    out
}

fn open(path: &Path) -> Result<(BufReader<File>, u64)> {
    let (file, len) = files::open(path)?;
    Ok((BufReader::with_capacity(1 << 16, file), len))
}

/// Reads a header of `H` bytes and the bytes that it declares; `stored` is the size of the (compressed) file.
fn decode<const H: usize>(name: &str, mut reader: impl BufRead, stored: u64, magic: u32) -> Result<([u8; H], Vec<u8>)> {
    let start = reader.fill_buf().map_err(|e| io_error(name, e))?;
    if start.is_empty() {
        return Err(data(name, format!("empty file; an idx header of {H} bytes expected")));
    }
    if start.starts_with(&[0x1f, 0x8b]) {
        decode_raw(name, MultiGzDecoder::new(reader), stored, true, magic)
    } else {
        decode_raw(name, reader, stored, false, magic)
    }
}

/// `stored` is the size of the file, compressed or not.
fn decode_raw<const H: usize>(
    name: &str,
    mut reader: impl Read,
    stored: u64,
    gzip: bool,
    magic: u32,
) -> Result<([u8; H], Vec<u8>)> {
    let short = |expected: u64, found: u64| {
        let reason = format!("{expected} bytes expected, {found} found (truncated download?); delete it or run with --download");
        data(name, reason)
    };
    // What a failed read means: the stream's end, a stream that isn't gzip, or the disk.
    let failed = |e: io::Error, expected: u64, found: u64| match e.kind() {
        ErrorKind::UnexpectedEof => short(expected, found),
        ErrorKind::InvalidData | ErrorKind::InvalidInput if gzip => {
            let reason = format!("corrupt gzip data after {found} of {expected} bytes ({e}); delete it or run with --download");
            data(name, reason)
        }
        _ => io_error(name, e),
    };

    let mut start = Vec::with_capacity(H);
    let read = reader.by_ref().take(H as u64).read_to_end(&mut start);
    read.map_err(|e| failed(e, H as u64, 0))?;
    let Ok(head) = <[u8; H]>::try_from(start.as_slice()) else {
        return Err(data(name, format!("{H} header bytes expected, {} found (truncated download?)", start.len())));
    };
    let [found, dims @ ..] = fields::<4>(&head);
    if found != magic {
        let what = |magic| match magic {
            IMAGES_MAGIC => "idx images",
            LABELS_MAGIC => "idx labels",
            _ => "not an idx file of bytes",
        };
        let reason = format!("magic number {magic} ({}) expected at byte 0, {found} ({}) found", what(magic), what(found));
        return Err(data(name, reason));
    }
    let used = H / 4 - 1;
    let body = dims.iter().take(used).try_fold(1u64, |n, &d| n.checked_mul(u64::from(d)));
    let total = body.and_then(|n| n.checked_add(H as u64));
    let (Some(body), Some(total)) = (body, total) else {
        return Err(data(name, format!("the header's sizes {:?} are too large", dims.get(..used).unwrap_or_default())));
    };
    if gzip && total > stored.saturating_mul(MAX_RATIO).saturating_add(ALWAYS) {
        let reason = format!(
            "{total} bytes expected by its header, over {MAX_RATIO} times the file's {stored}; if that is meant, unpack it first"
        );
        return Err(data(name, reason));
    }
    if !gzip && total != stored {
        return Err(if total > stored { short(total, stored) } else { long(name, total, &(stored - total).to_string()) });
    }

    // All at once only when a fair part has come, so that a header that lies costs little.
    let mut bytes = files::room(body.min(stored.saturating_mul(8).saturating_add(ALWAYS)))?;
    let mut read = reader.by_ref().take(bytes.capacity() as u64).read_to_end(&mut bytes);
    if read.is_ok() && bytes.len() == bytes.capacity() && (bytes.len() as u64) < body {
        let rest = body - bytes.len() as u64;
        let mut all: Vec<u8> = files::room(body)?;
        all.append(&mut bytes);
        bytes = all;
        read = reader.by_ref().take(rest).read_to_end(&mut bytes);
    }
    let have = (H + bytes.len()) as u64;
    read.map_err(|e| failed(e, total, have))?;
    if have < total {
        return Err(short(total, have));
    }
    // Reading to the end also verifies gzip's own checksum.
    match io::copy(&mut reader.take(1 << 20), &mut io::sink()) {
        Ok(0) => Ok((head, bytes)),
        Ok(more) => Err(long(name, total, &format!("{}{more}", if more == 1 << 20 { "at least " } else { "" }))),
        Err(e) if gzip && e.kind() != ErrorKind::Other => {
            let reason = format!(
                "all {total} bytes found, but the gzip data does not end as it should ({e}); delete it or run with --download"
            );
            Err(data(name, reason))
        }
        Err(e) => Err(io_error(name, e)),
    }
}

fn long(name: &str, total: u64, more: &str) -> Error {
    data(name, format!("{total} bytes expected, {more} more found behind them"))
}

fn write(path: &Path, header: &[u32], body: &[u8]) -> Result<()> {
    let mut head = Vec::with_capacity(header.len() * 4);
    header.iter().for_each(|field| head.extend(field.to_be_bytes()));
    let gzip = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    files::write_with(path, |file| {
        if gzip {
            let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::best());
            encoder.write_all(&head)?;
            encoder.write_all(body)?;
            encoder.finish().map(drop)
        } else {
            file.write_all(&head)?;
            file.write_all(body)
        }
    })
}

fn dim(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| invalid(format!("{n} does not fit an idx header's 32 bits")))
}

fn data(name: &str, reason: String) -> Error {
    Error::Data { path: name.to_string(), reason }
}

fn invalid(reason: String) -> Error {
    Error::Invalid { op: "idx", reason }
}

fn io_error(name: &str, source: io::Error) -> Error {
    Error::Io { path: PathBuf::from(name), source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn header(fields: &[u32]) -> Vec<u8> {
        fields.iter().flat_map(|f| f.to_be_bytes()).collect()
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// 5 images of 3x4 whose pixels don't compress away.
    fn sample() -> Vec<u8> {
        let mut bytes = header(&[IMAGES_MAGIC, 5, 3, 4]);
        bytes.extend((0..60u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
        bytes
    }

    fn images_error(bytes: &[u8]) -> String {
        parse_images("f", bytes).unwrap_err().to_string()
    }

    #[test]
    fn plain_and_gzip() {
        let plain = sample();
        let images = parse_images("f", &plain).unwrap();
        assert_eq!((images.count, images.rows, images.cols), (5, 3, 4));
        assert_eq!(images.pixels, plain[16..]);
        assert_eq!(parse_images("f", &gz(&plain)).unwrap(), images);
        // Two gzip members in a row are one stream.
        let mut members = gz(&plain[..30]);
        members.extend(gz(&plain[30..]));
        assert_eq!(parse_images("f", &members).unwrap(), images);
    }

    #[test]
    fn every_truncation_is_an_error_that_says_so() {
        let plain = sample();
        for n in 0..plain.len() {
            let text = images_error(&plain[..n]);
            match n {
                0 => assert_eq!(text, "f: empty file; an idx header of 16 bytes expected"),
                1..16 => assert_eq!(text, format!("f: 16 header bytes expected, {n} found (truncated download?)")),
                _ => assert_eq!(
                    text,
                    format!("f: 76 bytes expected, {n} found (truncated download?); delete it or run with --download")
                ),
            }
        }
        let packed = gz(&plain);
        for n in 0..packed.len() {
            let text = images_error(&packed[..n]);
            assert!(text.contains(" bytes ") || text.contains("empty file"), "{n}: {text}");
        }
        assert!(images_error(&packed[..packed.len() - 4]).starts_with("f: all 76 bytes found, but the gzip data does not end"));
    }

    #[test]
    fn every_flipped_byte_of_the_stream_is_noticed_or_harmless() {
        let plain = sample();
        let packed = gz(&plain);
        for i in 0..packed.len() {
            let mut bad = packed.clone();
            bad[i] ^= 0xff;
            match parse_images("f", &bad) {
                // Only gzip's own time stamp, flags of the compressor and system may change unnoticed.
                Ok(images) => assert!((4..10).contains(&i) && images.pixels == plain[16..], "{i}"),
                Err(e) => assert!(e.to_string().starts_with("f: "), "{e}"),
            }
        }
        assert!(images_error(&[0x1f, 0x8b, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]).contains("corrupt gzip"));
    }

    #[test]
    fn trailing_bytes() {
        let mut long = sample();
        long.extend([1, 2, 3]);
        assert_eq!(images_error(&long), "f: 76 bytes expected, 3 more found behind them");
        assert_eq!(images_error(&gz(&long)), "f: 76 bytes expected, 3 more found behind them");
        let mut packed = gz(&sample());
        packed.extend(b"garbage");
        assert!(images_error(&packed).starts_with("f: all 76 bytes found, but the gzip data does not end as it should"));
    }

    #[test]
    fn magic_numbers() {
        let labels = [header(&[LABELS_MAGIC, 16]), vec![1; 16]].concat();
        assert_eq!(parse_labels("f", &labels).unwrap(), [1; 16]);
        let text = "f: magic number 2051 (idx images) expected at byte 0, 2049 (idx labels) found";
        assert_eq!(images_error(&labels), text);
        let text = parse_labels("f", b"<!DOCTYPE html>").unwrap_err().to_string();
        assert!(text.ends_with("1008813135 (not an idx file of bytes) found"), "{text}");
    }

    #[test]
    fn huge_sizes_allocate_nothing() {
        let huge = header(&[IMAGES_MAGIC, u32::MAX, u32::MAX, u32::MAX]);
        assert_eq!(images_error(&huge), "f: the header's sizes [4294967295, 4294967295, 4294967295] are too large");
        assert!(images_error(&gz(&huge)).contains("too large"));
        let large = header(&[IMAGES_MAGIC, u32::MAX, 28, 28]);
        assert!(images_error(&large).starts_with("f: 3367254359296 bytes expected, 16 found"));
        assert!(images_error(&gz(&large)).contains("3367254359296 bytes expected by its header, over 64 times the file"));
        assert!(images_error(&header(&[IMAGES_MAGIC, 0, 28, 28])).contains("no pixels"));
        assert!(images_error(&header(&[IMAGES_MAGIC, 7, 0, 28])).contains("7 images of 0x28"));
    }

    #[test]
    fn labels_are_checked() {
        check_labels("f", &[0, 9, 3], 3, 10).unwrap();
        let text = |labels: &[u8]| check_labels("f", labels, 3, 10).unwrap_err().to_string();
        assert_eq!(text(&[0, 10, 3]), "f: label 10 of item 1 (byte 9) is not below 10");
        assert_eq!(text(&[0]), "f: 3 labels expected (one for each image), 1 found");
    }

    #[test]
    fn written_files_are_read_back() {
        let folder = std::env::temp_dir().join(format!("hadal-idx-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let pixels: Vec<u8> = (0..=255).collect();
        for name in ["images", "images.gz"] {
            let path = folder.join(name);
            write_images(&path, 8, 16, &pixels).unwrap();
            let images = read_images(&path).unwrap();
            assert_eq!((images.count, images.rows, images.cols, &images.pixels), (2, 8, 16, &pixels));
        }
        write_labels(folder.join("labels.gz"), &[3, 1, 4]).unwrap();
        assert_eq!(read_labels(folder.join("labels.gz")).unwrap(), [3, 1, 4]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "nothing temporary is left");

        assert!(matches!(write_images(folder.join("x"), 3, 5, &pixels), Err(Error::Invalid { .. })));
        assert!(matches!(write_images(folder.join("x"), 0, 5, &pixels), Err(Error::Invalid { .. })));
        assert!(matches!(write_labels(folder.join("no/such/folder"), &[1]), Err(Error::Io { .. })));
        assert!(matches!(write_labels(Path::new("/"), &[1]), Err(Error::Io { .. })));
        assert!(matches!(read_images(folder.join("absent")), Err(Error::Io { .. })));
        assert!(read_images(&folder).unwrap_err().to_string().ends_with("not a file"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
