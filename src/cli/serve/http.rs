//! The web side: connections, their limits, and what each path answers.

use super::engine::{Desk, PATIENCE, Refusal, Shared, lock};
use super::fair::{Bodies, Connections, Held, Peer, Rates};
use super::gate;
use super::metrics::{Page, quoted};
use crate::cli::rate::Lines;
use edge_infer::source::pixels;
use edge_infer::text::one_line;
use edge_wire::Frame;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// A request's head must be there within this time, and the next one's on a connection that stays open.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's body must be there within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that takes nothing for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections are closed, between two requests, after this time.
const MAX_AGE: Duration = Duration::from_secs(120);
/// How long requests under way may take once the connection is to end.
const GRACE: Duration = Duration::from_secs(5);
/// The same once the service is to end.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// Bytes of all bodies that are being received or wait to be decoded; twice the largest one where that is more.
const MAX_BUFFERED: usize = 64 << 20;
/// Bytes of all live pictures that clients are taking.
const MAX_SHOWN: usize = 64 << 20;
/// Bytes that the system keeps for a client that does not read.
const SEND_BUFFER: usize = 128 << 10;
/// Quality of the live picture where frames are not JPEG files.
const QUALITY: u8 = 80;

const PAGE: &str = include_str!("page.html");
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; connect-src 'self'; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
/// Of every answer but the page: nothing in it is run or shown inside anything else.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";
/// Pages of other sites can neither embed what we answer nor share a process with it.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-embedder-policy"), "require-corp"),
];

type Answer = Response<Full<Bytes>>;

/// What every connection needs.
pub struct Web {
    pub shared: Arc<Shared>,
    pub desk: Desk,
    /// Required in every request but those for the page and `/healthz`.
    pub token: Option<String>,
    /// Only names of this computer are taken for hosts: a page from elsewhere must not reach us by a name of its own.
    pub only_local_names: bool,
    pub max_body: usize,
    /// The constant part of the page's state, and of the metrics.
    pub about: Value,
    bodies: Arc<Bodies>,
    rates: Rates,
    denied: Mutex<Lines>,
    shown: Mutex<Shown>,
}

/// What the command line sets.
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    pub connections: usize,
    /// Requests a second from one address.
    pub rate: u32,
}

impl Web {
    pub fn new(shared: Arc<Shared>, desk: Desk, token: Option<String>, limits: &Limits, about: Value) -> Self {
        let only_local_names = token.is_none();
        let bodies = Bodies::new(MAX_BUFFERED.max(2 * limits.body));
        let (rates, denied) = (Rates::new(limits.rate.into()), Mutex::new(Lines::new(Instant::now())));
        Web { shared, desk, token, only_local_names, max_body: limits.body, about, bodies, rates, denied, shown: Mutex::default() }
    }

    /// Tells the log of a request that is not answered.
    fn denied(&self, address: IpAddr, what: &str, code: u16, why: &str) {
        if let Some(more) = lock(&self.denied).next(Instant::now()) {
            // A request's target may be any text, of any length.
            let what: String = one_line(what).chars().take(120).collect();
            eprintln!("denied: {address}: {what}: {code} {why}{more}");
        }
    }
}

/// Live pictures as JPEG files that clients are taking, with the numbers of their frames, oldest first. All clients that get the
/// same frame share one copy.
#[derive(Default)]
struct Shown(Vec<(u64, Bytes)>);

impl Shown {
    /// The file of this frame, if it is there; else, where files that nobody takes away leave no room for another one, the
    /// newest that is there.
    fn find(&mut self, number: u64, bytes: usize) -> Option<Bytes> {
        let newest = self.0.last().map(|f| f.0);
        self.0.retain(|(n, file)| Some(*n) == newest || !file.is_unique());
        let held: usize = self.0.iter().map(|f| f.1.len()).sum();
        self.0.last().filter(|f| f.0 == number || held + bytes > MAX_SHOWN).map(|f| f.1.clone())
    }

    fn add(&mut self, number: u64, file: Bytes) -> Bytes {
        self.0.push((number, file.clone()));
        file
    }
}

/// Accepts connections until `stop` says true, then lets those that are open finish.
pub async fn serve(listener: TcpListener, web: Arc<Web>, max_connections: usize, mut stop: watch::Receiver<bool>) {
    let (places, mut open) = (Connections::new(max_connections), JoinSet::new());
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => (stream, address.ip().to_canonical()),
                Err(_) => {
                    // No descriptors left: some will be free soon.
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            Some(_) = open.join_next() => continue,
            () = told(&mut stop) => break,
        };
        let Some(place) = places.enter(Peer::new(address)) else {
            turn_away(&stream, address, &web);
            continue;
        };
        let (web, stop) = (web.clone(), stop.clone());
        open.spawn(async move {
            web.shared.metrics.connections.fetch_add(1, Relaxed);
            tokio::select! {
                () = connection(stream, address, &web, stop) => {}
                () = place.lost() => {}
            }
            web.shared.metrics.connections.fetch_sub(1, Relaxed);
        });
    }
    drop(listener);
    // Whoever is not done by then is cut off.
    let _ = timeout(STOP_GRACE, async { while open.join_next().await.is_some() {} }).await;
}

/// Waits until `stop` says true.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Too many connections: said without a task, a buffer or a wait.
fn turn_away(stream: &TcpStream, address: IpAddr, web: &Web) {
    web.shared.metrics.answered(503);
    web.denied(address, "connection", 503, "too many are open");
    let _ = stream.try_write(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

async fn connection(stream: TcpStream, address: IpAddr, web: &Arc<Web>, mut stop: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, WRITE_TIMEOUT.as_millis() as u32);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
    let service = service_fn(|request| answer(request, address, web));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = told(&mut stop) => {}
        () = sleep(MAX_AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(GRACE, connection).await;
}

async fn answer(request: Request<Incoming>, address: IpAddr, web: &Arc<Web>) -> Result<Answer, Infallible> {
    let what = format!("{} {}", request.method(), request.uri());
    let mut answer = route(request, Peer::new(address), web).await.unwrap_or_else(|refused| refused);
    let code = answer.status().as_u16();
    web.shared.metrics.answered(code);
    if let Some(Denied(why)) = answer.extensions().get() {
        web.denied(address, &what, code, why);
    }
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    Ok(answer)
}

/// Marks the answer to a request that had no right to be made.
#[derive(Clone)]
struct Denied(&'static str);

fn denied(code: StatusCode, why: &'static str) -> Answer {
    let mut refused = error(code, why);
    refused.extensions_mut().insert(Denied(why));
    refused
}

async fn route(request: Request<Incoming>, peer: Peer, web: &Arc<Web>) -> Result<Answer, Answer> {
    if !web.rates.take(peer, Instant::now()) {
        return Err(denied(StatusCode::TOO_MANY_REQUESTS, "too many requests from this address; try again"));
    }
    gate::check(&request, web.only_local_names).map_err(|(code, why)| denied(code, why))?;
    let path = request.uri().path().to_owned();
    let open = matches!(path.as_str(), "/" | "/healthz");
    if !open && !authorised(&request, web) {
        let mut refused = denied(StatusCode::UNAUTHORIZED, "Authorization: Bearer TOKEN is needed");
        refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return Err(refused);
    }
    let allowed = if path == "/v1/classify" { Method::POST } else { Method::GET };
    let known = matches!(path.as_str(), "/" | "/healthz" | "/metrics" | "/v1/state" | "/v1/frame" | "/v1/classify");
    if !known {
        return Err(error(StatusCode::NOT_FOUND, "there are /, /healthz, /metrics, /v1/state, /v1/frame and POST /v1/classify"));
    }
    let head = request.method() == Method::HEAD && allowed == Method::GET;
    if request.method() != allowed && !head {
        let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "another method is needed");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static(if allowed == Method::POST { "POST" } else { "GET" }));
        return Err(refused);
    }
    Ok(match path.as_str() {
        "/" => page(),
        "/healthz" => health(&web.shared),
        "/metrics" => typed(StatusCode::OK, "text/plain; version=0.0.4", metrics(web)),
        "/v1/state" => typed(StatusCode::OK, "application/json", state(web).to_string()),
        "/v1/frame" => frame(web).await,
        _ => classify(request, peer, web).await?,
    })
}

fn authorised<B>(request: &Request<B>, web: &Web) -> bool {
    let Some(token) = &web.token else { return true };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
    given.is_some_and(|given| bool::from(given.ct_eq(token.as_bytes())))
}

fn typed(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn error(code: StatusCode, why: &str) -> Answer {
    let mut answer = typed(code, "application/json", json!({ "error": why }).to_string());
    if matches!(code, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// An answer that leaves the rest of a body unread.
fn cut(code: StatusCode, why: &str) -> Answer {
    let mut answer = error(code, why);
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn page() -> Answer {
    let mut answer = typed(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    answer
}

fn camera_state(shared: &Shared) -> &'static str {
    match &shared.camera {
        None => "none",
        Some(camera) if camera.statistics().connected => "connected",
        Some(_) => "waiting",
    }
}

fn health(shared: &Shared) -> Answer {
    let (code, status) =
        if shared.alive() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "the network does not answer") };
    typed(code, "application/json", json!({ "status": status, "camera": camera_state(shared) }).to_string())
}

/// What the page shows.
fn state(web: &Web) -> Value {
    let shared = &*web.shared;
    let seen = shared.camera.as_ref().map(|c| c.statistics()).unwrap_or_default();
    let board = lock(&shared.board).clone();
    let live = lock(&shared.live);
    let mut state = json!({
        "about": web.about,
        "uptime_s": shared.uptime().as_secs(),
        "camera": camera_state(shared),
        "number": live.number,
        "frame": live.frame.as_ref().map(|(info, _)| json!({
            "sequence": info.sequence, "width": info.width, "height": info.height, "format": info.format.name(),
        })),
        "age_s": live.at.map(|at| at.elapsed().as_secs_f32()),
        "top": [],
        "history_ms": live.history,
        "classified": shared.metrics.camera_inference.count(),
        "posted": shared.metrics.posted_inference.count(),
        "dropped": seen.link.frames_incomplete + seen.link.frames_missed + seen.link.frames_overrun,
        "corrupted": seen.link.frames_corrupted,
        "superseded": seen.superseded,
        "undecodable": shared.metrics.undecodable.load(Relaxed),
        "celsius": board.hottest(),
        "mhz": board.mhz.first(),
        "throttled": board.throttled.map(|t| t.now()),
    });
    // The field that the task has.
    if let (Some(state), Ok(Value::Object(answer))) = (state.as_object_mut(), serde_json::to_value(&live.answer)) {
        state.extend(answer);
    }
    state
}

fn metrics(web: &Web) -> String {
    let shared = &*web.shared;
    let mut page = Page::default();
    let about: Vec<_> =
        web.about.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", quoted(v.as_str().unwrap_or("")))).collect();
    page.values("edge_infer_info", "gauge", "What runs.", &[(about.join(","), 1.0)]);
    page.value("edge_infer_uptime_seconds", "gauge", "Since the start.", shared.uptime().as_secs_f64());
    if let Some(camera) = &shared.camera {
        let seen = camera.statistics();
        let link = seen.link;
        let results = [
            ("received", link.frames_ok),
            ("incomplete", link.frames_incomplete),
            ("corrupted", link.frames_corrupted),
            ("missing", link.frames_missed),
            ("overrun", link.frames_overrun),
            ("superseded", seen.superseded),
            ("undecodable", shared.metrics.undecodable.load(Relaxed)),
        ];
        let values: Vec<_> = results.map(|(what, n)| (format!("what=\"{what}\""), n as f64)).into();
        page.values("edge_infer_camera_frames_total", "counter", "Frames of the camera by what became of them.", &values);
        page.value("edge_infer_camera_bytes_total", "counter", "Bytes of the camera's link.", link.bytes as f64);
        page.value("edge_infer_camera_bytes_skipped_total", "counter", "Bytes that belong to no intact chunk.", link.bytes_skipped as f64);
        page.value("edge_infer_camera_connected", "gauge", "Whether the link is open.", f64::from(u8::from(seen.connected)));
        page.value("edge_infer_camera_connections_total", "counter", "How often it was opened.", seen.connections as f64);
    }
    page.metrics(&shared.metrics);
    let board = lock(&shared.board).clone();
    if !board.celsius.is_empty() {
        let zones: Vec<_> =
            board.celsius.iter().enumerate().map(|(i, z)| (format!("zone={},index=\"{i}\"", quoted(&z.name)), z.celsius)).collect();
        page.values("edge_infer_temperature_celsius", "gauge", "Thermal zones.", &zones);
    }
    if !board.mhz.is_empty() {
        let clocks: Vec<_> = board.mhz.iter().enumerate().map(|(i, mhz)| (format!("cpu=\"{i}\""), mhz * 1e6)).collect();
        page.values("edge_infer_cpu_clock_hertz", "gauge", "Clocks of the processors that are online.", &clocks);
    }
    if let Some(throttled) = board.throttled {
        page.value("edge_infer_throttled", "gauge", "A Raspberry Pi's get_throttled flags.", f64::from(throttled.0));
    }
    if let Some(bytes) = super::resident_bytes() {
        page.value("process_resident_memory_bytes", "gauge", "Memory in use.", bytes as f64);
    }
    page.text()
}

/// The live picture: a JPEG file as it came, or made once a frame.
async fn frame(web: &Arc<Web>) -> Answer {
    let none = || typed(StatusCode::NO_CONTENT, "image/jpeg", Bytes::new());
    let newest = |web: &Web| {
        let live = lock(&web.shared.live);
        live.frame.as_ref().map(|(info, payload)| (*info, payload.clone(), live.number))
    };
    let Some((_, payload, number)) = newest(web) else { return none() };
    // Whoever holds the lock is making the file, in a thread that may wait.
    if let Some(file) = web.shown.try_lock().ok().and_then(|mut shown| shown.find(number, payload.len())) {
        return typed(StatusCode::OK, "image/jpeg", file);
    }
    drop(payload);
    let for_encoder = web.clone();
    let encoded = tokio::task::spawn_blocking(move || {
        let web = for_encoder;
        // One at a time; whoever comes second finds the first one's file.
        let mut shown = lock(&web.shown);
        let (info, payload, number) = newest(&web)?;
        if let Some(file) = shown.find(number, payload.len()) {
            return Some(file);
        }
        let file = match pixels::to_jpeg(&Frame { info, payload: &payload }, QUALITY).ok()? {
            // As it came: the frame's own memory.
            Cow::Borrowed(_) => payload,
            Cow::Owned(file) => file.into(),
        };
        Some(shown.add(number, file))
    });
    match encoded.await {
        Ok(Some(file)) => typed(StatusCode::OK, "image/jpeg", file),
        _ => none(),
    }
}

async fn classify(request: Request<Incoming>, peer: Peer, web: &Arc<Web>) -> Result<Answer, Answer> {
    let top = match request.uri().query().unwrap_or("").split('&').find_map(|p| p.strip_prefix("top=")) {
        None => 5,
        Some(text) => match text.parse() {
            Ok(n @ 1..=10_000) => n,
            _ => return Err(cut(StatusCode::BAD_REQUEST, "top is a number from 1 to 10000")),
        },
    };
    let bytes = timeout(BODY_TIMEOUT, body(request.into_body(), peer, web))
        .await
        .map_err(|_| cut(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))??;
    if bytes.0.is_empty() {
        return Err(error(StatusCode::BAD_REQUEST, "the body is the picture: PNG, JPEG, BMP or PNM"));
    }
    let busy = || error(StatusCode::SERVICE_UNAVAILABLE, "too many pictures are waiting; try again");
    let (bytes, _held) = bytes;
    let answer = web.desk.submit(peer, bytes, top);
    match timeout(PATIENCE, answer).await {
        Ok(Ok(Ok(answer))) => {
            let text = serde_json::to_string(&answer).map_err(|e| error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()))?;
            Ok(typed(StatusCode::OK, "application/json", text))
        }
        Ok(Ok(Err(Refusal::Picture(why)))) => Err(error(StatusCode::UNPROCESSABLE_ENTITY, &why)),
        Ok(Ok(Err(Refusal::Failed(why)))) => Err(error(StatusCode::INTERNAL_SERVER_ERROR, &why)),
        Ok(Ok(Err(Refusal::Busy)) | Err(_)) | Err(_) => Err(busy()),
    }
}

/// Reads a body; what it takes counts against what all bodies together may take, until the second value is dropped.
async fn body(mut body: Incoming, peer: Peer, web: &Web) -> Result<(Vec<u8>, Held), Answer> {
    let limit = web.max_body;
    let too_large = || cut(StatusCode::PAYLOAD_TOO_LARGE, &format!("a body has at most {limit} bytes"));
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let (mut bytes, mut held) = (Vec::new(), web.bodies.hold(peer));
    while let Some(part) = body.frame().await {
        let part = part.map_err(|_| cut(StatusCode::BAD_REQUEST, "the body is broken"))?;
        let Some(part) = part.data_ref() else { continue };
        if bytes.len() + part.len() > limit {
            return Err(too_large());
        }
        if !held.add(part.len()) {
            return Err(cut(StatusCode::SERVICE_UNAVAILABLE, "too many bodies are being received; try again"));
        }
        bytes.extend_from_slice(part);
    }
    Ok((bytes, held))
}

/// Whether an address is reached from this computer only.
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_in_both_families() {
        assert!(is_loopback(&"[::ffff:127.0.0.1]:1".parse().unwrap()) && !is_loopback(&"0.0.0.0:1".parse().unwrap()));
    }

    #[test]
    fn clients_share_a_picture_and_those_that_keep_it_leave_memory_bounded() {
        let (mut shown, mut kept) = (Shown::default(), Vec::new());
        let bytes = MAX_SHOWN / 4;
        for number in 0..100 {
            // Two clients a frame, that never read on.
            for _ in 0..2 {
                let file = shown.find(number, bytes).unwrap_or_else(|| shown.add(number, vec![0; bytes].into()));
                kept.push(file);
            }
        }
        let copies: std::collections::HashSet<_> = kept.iter().map(|f| f.as_ptr()).collect();
        assert_eq!((copies.len(), shown.0.len()), (4, 4));
        kept.clear();
        assert_eq!(shown.find(100, bytes), None);
        assert_eq!(shown.0.len(), 1, "only the newest is kept for others");
    }
}
