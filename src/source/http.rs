//! MJPEG over HTTP: `multipart/x-mixed-replace` of JPEG files, as ESP32-CAM, ustreamer, motion and network cameras send it.
//!
//! Parts are found by the files' own structure ([`super::mjpeg`]), so that boundaries and lengths may be wrong or missing.

use super::CameraOptions;
use super::address::connect;
use super::camera::{Delivery, Source, TICK};
use super::clock::SenderClock;
use super::options::usage;
use super::stream::{Jpegs, Tally};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Silence after which a stream is opened again.
const STALL: Duration = Duration::from_secs(10);

/// An `http:` address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// `HOST` or `HOST:PORT`, as it was written.
    authority: String,
    /// From the `/` on.
    path: String,
    /// `USER:PASSWORD`, decoded.
    user: Option<String>,
}

impl Url {
    /// `HOST:PORT` to connect to.
    fn peer(&self) -> String {
        // An address of IPv6 has colons inside its brackets.
        let has_port = self.authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        if has_port { self.authority.clone() } else { format!("{}:80", self.authority) }
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || "http://[USER:PASSWORD@]HOST[:PORT]/PATH, for example http://192.168.1.9:81/stream".to_string();
        if text.starts_with("https:") {
            return Err(format!("https is left to other programs: \"exec:curl -sSN {text}\""));
        }
        let rest = text.strip_prefix("http://").ok_or_else(usage)?;
        let (place, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, authority) = match place.rsplit_once('@') {
            Some((user, authority)) => (Some(decoded(user).ok_or_else(usage)?), authority),
            None => (None, place),
        };
        let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
        let url = Url { authority: authority.into(), path: path.split('#').next().unwrap_or_default().into(), user };
        let peer = url.peer();
        let good = peer.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
        let parses = url.path.parse::<hyper::Uri>().is_ok() && HeaderValue::from_str(&url.authority).is_ok();
        if good && parses { Ok(url) } else { Err(usage()) }
    }
}

/// Without the password.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// `%40` → `@`.
fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

/// `USER:PASSWORD` or a token, as a file or an address has it → the value of `Authorization`.
pub(super) fn authorization(secret: &str) -> Result<String, String> {
    let secret = secret.trim();
    let value = match secret.split_once(' ') {
        Some(("Bearer", _)) => secret.to_string(),
        _ if secret.contains(':') => format!("Basic {}", base64(secret.as_bytes())),
        _ => format!("Bearer {secret}"),
    };
    let one_word = value.split(' ').count() == 2 && value.is_ascii();
    if one_word && HeaderValue::from_str(&value).is_ok() && !secret.is_empty() {
        Ok(value)
    } else {
        Err("USER:PASSWORD, or a token without spaces, on one line".into())
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        std::array::from_fn::<char, 4, _>(|i| if i > three.len() { '=' } else { char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]) })
    };
    bytes.chunks(3).flat_map(group).collect()
}

/// A stream that is opened again and again.
pub(super) struct Stream {
    url: Url,
    authorization: Option<HeaderValue>,
    runtime: Runtime,
    body: Option<Incoming>,
    tally: Tally,
}

impl Stream {
    pub fn new(url: &Url, options: &CameraOptions) -> io::Result<Self> {
        options.without_format("http: sends JPEG files")?;
        options.without_controls("http: has no controls; cameras have pages for that")?;
        let authorization = match (&options.authorization, &url.user) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(user)) => Some(authorization(&format!("{user}{}", if user.contains(':') { "" } else { ":" })).map_err(usage)?),
            (None, None) => None,
        };
        let authorization = authorization.map(|value| HeaderValue::from_str(&value)).transpose().map_err(|e| usage(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Stream { url: url.clone(), authorization, runtime, body: None, tally: Tally::new() })
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        // Both were checked when the address was read.
        *request.uri_mut() = self.url.path.parse().unwrap_or_default();
        let host = HeaderValue::from_str(&self.url.authority).unwrap_or(HeaderValue::from_static("localhost"));
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(concat!("edge-infer/", env!("CARGO_PKG_VERSION"))));
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        request
    }
}

impl Source for Stream {
    fn open(&mut self) -> io::Result<()> {
        let stream = connect(&self.url.peer())?;
        stream.set_nonblocking(true)?;
        let request = self.request();
        let answer = self.runtime.block_on(async {
            let io = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
            // Small cameras write their headers by hand.
            let mut builder = http1::Builder::new();
            builder.allow_spaces_after_header_name_in_responses(true).allow_obsolete_multiline_headers_in_responses(true);
            builder.ignore_invalid_headers_in_responses(true);
            let (mut sender, connection) = builder.handshake(io).await.map_err(broken)?;
            tokio::spawn(connection);
            let answer = timeout(ANSWER, sender.send_request(request)).await;
            answer.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))?.map_err(broken)
        })?;
        check(answer.status(), answer.headers())?;
        self.body = Some(answer.into_body());
        Ok(())
    }

    fn read(&mut self, delivery: &mut Delivery) -> io::Result<()> {
        let Some(mut body) = self.body.take() else { return Ok(()) };
        let (mut jpegs, mut clock) = (Jpegs::new(&self.tally), PartClock::default());
        let mut last = Instant::now();
        let result = loop {
            if delivery.stopped() {
                break Ok(());
            }
            match self.runtime.block_on(async { timeout(TICK, body.frame()).await }) {
                Err(_) if last.elapsed() > STALL => {
                    break Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing came for {} seconds", STALL.as_secs())));
                }
                Err(_) => {}
                Ok(None) => break Ok(()),
                Ok(Some(Err(e))) => break Err(broken(e)),
                Ok(Some(Ok(frame))) => {
                    last = Instant::now();
                    if let Some(bytes) = frame.data_ref() {
                        jpegs.push(bytes, &mut self.tally, delivery, &mut |before, first| clock.captured(before, first));
                    }
                }
            }
        };
        jpegs.finish(&mut self.tally, delivery, &mut |before, first| clock.captured(before, first));
        result
    }
}

/// hyper's error, with what caused it.
fn broken(e: hyper::Error) -> io::Error {
    let cause = std::error::Error::source(&e).map_or(String::new(), |cause| format!(": {cause}"));
    io::Error::new(io::ErrorKind::ConnectionAborted, format!("{e}{cause}"))
}

/// Refuses answers that are no stream.
fn check(status: StatusCode, headers: &HeaderMap) -> io::Result<()> {
    let header = |name| headers.get(name).map(|v: &HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default();
    let denied = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{status}: {why}")));
    match status {
        StatusCode::UNAUTHORIZED if header(WWW_AUTHENTICATE).to_lowercase().starts_with("digest") => {
            denied("it asks for Digest, which is left to curl: \"exec:curl -sSN --digest -u USER:PASSWORD …\"".into())
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => denied("USER:PASSWORD@ in the address, or --camera-auth FILE".into()),
        status if status.is_redirection() => Err(usage(format!("{status}: the stream is at {}", header(LOCATION)))),
        status if !status.is_success() => Err(io::Error::other(status.to_string())),
        _ if header(CONTENT_TYPE).starts_with("text/") => {
            Err(usage(format!("it answers {}, not pictures: the stream has another path", header(CONTENT_TYPE))))
        }
        _ => Ok(()),
    }
}

/// The sender's clock, where parts tell it: `X-Timestamp: SECONDS.FRACTION`, as esp32-camera and mjpg-streamer do.
#[derive(Default)]
struct PartClock {
    clock: SenderClock,
    last: Duration,
}

impl PartClock {
    fn captured(&mut self, before: &[u8], first_byte: Instant) -> (Instant, Option<Duration>) {
        let Some(time) = timestamp(before) else { return (first_byte, None) };
        // A clock that stands still or goes back tells nothing of the frames before.
        if time <= self.last {
            self.clock.reset();
        }
        self.last = time;
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        (self.clock.captured(first_byte, us), Some(time))
    }
}

/// Milliseconds or finer: whole seconds would make frames look old.
fn timestamp(before: &[u8]) -> Option<Duration> {
    let text = String::from_utf8_lossy(before).to_lowercase();
    let line = text.lines().rev().find_map(|line| line.strip_prefix("x-timestamp:"))?.trim();
    let (_, fraction) = line.split_once('.')?;
    let seconds: f64 = line.parse().ok().filter(|_| fraction.len() >= 3)?;
    Duration::try_from_secs_f64(seconds).ok().filter(|d| d.as_secs() < 1 << 40)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_secrets() {
        let url: Url = "http://me:p%40ss@10.0.0.7:81/stream?x=1#y".parse().unwrap();
        assert_eq!((url.to_string().as_str(), url.peer().as_str()), ("http://10.0.0.7:81/stream?x=1", "10.0.0.7:81"));
        assert_eq!(url.user.as_deref(), Some("me:p@ss"));
        assert_eq!("http://[::1]".parse::<Url>().unwrap().peer(), "[::1]:80");
        assert_eq!("http://cam?action=stream".parse::<Url>().unwrap().path, "/?action=stream");
        for bad in ["http://", "http://:80/", "http://a:0/", "http://a:b/", "http://a/ b", "http://%zz@a/", "https://a/", "http:a"] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
        // The example of RFC 7617.
        assert_eq!(authorization("Aladdin:open sesame\n").unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(authorization("abc").unwrap(), "Bearer abc");
        assert_eq!(authorization("Bearer a:b").unwrap(), "Bearer a:b");
        for bad in ["", " ", "a b", "a\nb"] {
            assert!(authorization(bad).is_err(), "{bad}");
        }
        // RFC 4648, section 10.
        for (text, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn answers_that_are_no_stream_say_what_to_do() {
        let answer = |status, name: hyper::header::HeaderName, value| {
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
            check(StatusCode::from_u16(status).unwrap(), &headers)
        };
        let says = |result: io::Result<()>, kind, words: &str| {
            let e = result.unwrap_err();
            assert!(e.kind() == kind && e.to_string().contains(words), "{e:?}");
        };
        answer(200, CONTENT_TYPE, "multipart/x-mixed-replace;boundary=frame").unwrap();
        says(answer(200, CONTENT_TYPE, "text/html"), io::ErrorKind::InvalidInput, "text/html");
        says(answer(401, WWW_AUTHENTICATE, "Basic realm=x"), io::ErrorKind::PermissionDenied, "--camera-auth");
        says(answer(401, WWW_AUTHENTICATE, "Digest realm=x"), io::ErrorKind::PermissionDenied, "--digest");
        says(answer(302, LOCATION, "/other"), io::ErrorKind::InvalidInput, "/other");
        says(answer(503, LOCATION, ""), io::ErrorKind::Other, "503");
    }

    #[test]
    fn times_of_parts() {
        let of = |text: &str| timestamp(text.as_bytes());
        assert_eq!(of("\r\n--x\r\nX-Timestamp: 12.250000\r\n\r\n"), Some(Duration::from_millis(12_250)));
        for none in ["", "X-Timestamp: 12", "X-Timestamp: 12.5", "X-Timestamp: -1.000", "X-Timestamp: nan.000", "X-Timestamp: 9e99.0000"] {
            assert_eq!(of(none), None, "{none}");
        }
        let (start, mut clock) = (Instant::now(), PartClock::default());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(clock.captured(b"x-timestamp: 5.000", at(100)).0, at(100));
        // 20 ms late.
        let late = clock.captured(b"x-timestamp: 5.100", at(220)).0;
        assert!(late >= at(200) && late < at(201));
        assert_eq!(clock.captured(b"x-timestamp: 5.100", at(500)).0, at(500), "a clock that stands still");
        assert_eq!(clock.captured(b"x-timestamp: 1.000", at(600)).0, at(600), "a sender that began anew");
    }
}
