//! A transfer over plain HTTP that goes on where an earlier one was cut off.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use ureq::http::StatusCode;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};

use super::{Failure, MOST_BYTES, disk, size, unavailable};

pub fn agent(url: &str) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_resolve(Some(Duration::from_secs(5)))
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_recv_response(Some(Duration::from_secs(30)))
        .timeout_per_read(Some(Duration::from_secs(30)))
        .http_status_as_error(false)
        // The files are compressed already, and what is hashed has to be what the server keeps.
        .accept_encoding("identity")
        .user_agent(concat!("hadal/", env!("CARGO_PKG_VERSION")));
    let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|host| url.starts_with(host));
    let config = if local { config.proxy(None) } else { config };
    config.build().into()
}

/// Asks for what `part` lacks and appends it; on failure what has come stays.
pub fn transfer(agent: &ureq::Agent, url: &str, part: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), Failure> {
    let mut have = size(part);
    let mut response = ask(agent, url, have)?;
    if have > 0 && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        // Either all of it is here, or what is here is of something else.
        if range(&response) == Some((0, have)) {
            return Ok(());
        }
        have = 0;
        response = ask(agent, url, have)?;
    }
    let total = match response.status() {
        StatusCode::PARTIAL_CONTENT => match range(&response) {
            Some((start, total)) if start == have => total,
            _ => return Err(unavailable(url, format!("the server sent another part than the one from byte {have}"))),
        },
        StatusCode::OK => {
            let page = header(&response, CONTENT_TYPE).is_some_and(|t| t.starts_with("text/html"));
            if page {
                return Err(unavailable(url, "a web page came instead of the file (a network that asks to log in?)"));
            }
            have = 0;
            header(&response, CONTENT_LENGTH).and_then(|n| n.parse().ok()).unwrap_or(0)
        }
        status => return Err(unavailable(url, format!("the server answered {status}"))),
    };

    let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(part).map_err(disk(part))?;
    file.set_len(have).and_then(|()| file.seek(SeekFrom::End(0))).map_err(disk(part))?;
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0; 1 << 16];
    progress(have, total);
    loop {
        let cut = |have: u64, why: &dyn std::fmt::Display| {
            let of = if total > 0 { format!(" of {total}") } else { String::new() };
            unavailable(url, format!("the connection ended after {have}{of} bytes ({why}); another try goes on from there"))
        };
        let n = match body.read(&mut buffer) {
            Ok(0) if have < total => return Err(cut(have, &"closed by the server")),
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(cut(have, &e)),
        };
        file.write_all(buffer.get(..n).unwrap_or_default()).map_err(disk(part))?;
        have += n as u64;
        if have > MOST_BYTES {
            let _ = fs::remove_file(part);
            return Err(unavailable(url, format!("more than {MOST_BYTES} bytes came; this is not the file")));
        }
        progress(have, total);
    }
    file.sync_all().map_err(disk(part))
}

type Response = ureq::http::Response<ureq::Body>;

fn ask(agent: &ureq::Agent, url: &str, from: u64) -> Result<Response, Failure> {
    let mut request = agent.get(url);
    if from > 0 {
        request = request.header(RANGE, format!("bytes={from}-"));
    }
    request.call().map_err(|e| unavailable(url, e))
}

fn header(response: &Response, name: ureq::http::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// The start and the total of `Content-Range: bytes start-end/total`; a start of 0 for `bytes */total`.
fn range(response: &Response) -> Option<(u64, u64)> {
    let (range, total) = header(response, CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
    let start = match range.split_once('-') {
        Some((start, _)) => start.trim().parse().ok()?,
        None => 0,
    };
    // An unknown total is written as a star.
    Some((start, total.trim().parse().unwrap_or(0)))
}
