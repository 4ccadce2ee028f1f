//! The web side: connections, their limits, and what each path answers.

use super::engine::{Desk, PATIENCE, Refusal, Shared, lock};
use super::metrics::{Page, quoted};
use edge_infer::source::pixels;
use edge_wire::{Frame, PixelFormat};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

/// A request's head must be there within this time, and the next one's on a connection that stays open.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's body must be there within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that takes nothing for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections are closed, between two requests, after this time.
const MAX_AGE: Duration = Duration::from_secs(120);
/// How long requests under way may take once the service, or the connection, is to end.
pub const GRACE: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// Bytes of all bodies that are being received or wait to be decoded.
const MAX_BUFFERED: usize = 64 << 20;
/// Quality of the live picture where frames are not JPEG files.
const QUALITY: u8 = 80;

const PAGE: &str = include_str!("page.html");
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; connect-src 'self'; frame-ancestors 'none'";

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
    buffered: Arc<Semaphore>,
    /// The live picture as JPEG, and the number of its frame.
    picture: Mutex<(u64, Bytes)>,
}

impl Web {
    pub fn new(shared: Arc<Shared>, desk: Desk, token: Option<String>, only_local_names: bool, max_body: usize, about: Value) -> Self {
        let (buffered, picture) = (Arc::new(Semaphore::new(MAX_BUFFERED)), Mutex::default());
        Web { shared, desk, token, only_local_names, max_body, about, buffered, picture }
    }
}

/// Accepts connections until `stop` says true, then lets those that are open finish.
pub async fn serve(listener: TcpListener, web: Arc<Web>, max_connections: usize, mut stop: watch::Receiver<bool>) {
    let free = Arc::new(Semaphore::new(max_connections));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    // No descriptors left: some will be free soon.
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = told(&mut stop) => break,
        };
        match free.clone().try_acquire_owned() {
            Ok(place) => {
                let (web, stop) = (web.clone(), stop.clone());
                tokio::spawn(async move {
                    web.shared.metrics.connections.fetch_add(1, Relaxed);
                    connection(stream, &web, stop).await;
                    web.shared.metrics.connections.fetch_sub(1, Relaxed);
                    drop(place);
                });
            }
            Err(_) => turn_away(&stream, &web),
        }
    }
    drop(listener);
    let all = u32::try_from(max_connections).unwrap_or(u32::MAX);
    // Whoever is not done by then is cut off.
    let _ = timeout(GRACE + Duration::from_secs(1), free.acquire_many(all)).await;
}

/// Waits until `stop` says true.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Too many connections: said without a task, a buffer or a wait.
fn turn_away(stream: &TcpStream, web: &Web) {
    web.shared.metrics.answered(503);
    let _ = stream.try_write(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

async fn connection(stream: TcpStream, web: &Arc<Web>, mut stop: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, WRITE_TIMEOUT.as_millis() as u32);
    let service = service_fn(|request| answer(request, web));
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

async fn answer(request: Request<Incoming>, web: &Arc<Web>) -> Result<Answer, Infallible> {
    let mut answer = route(request, web).await.unwrap_or_else(|refused| refused);
    web.shared.metrics.answered(answer.status().as_u16());
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(answer)
}

async fn route(request: Request<Incoming>, web: &Arc<Web>) -> Result<Answer, Answer> {
    let path = request.uri().path().to_owned();
    let open = matches!(path.as_str(), "/" | "/healthz");
    if web.only_local_names && !is_local(&request) {
        return Err(error(StatusCode::FORBIDDEN, "this host name is not the computer's own; use 127.0.0.1, or --token-file"));
    }
    if !open && !authorised(&request, web) {
        let mut refused = error(StatusCode::UNAUTHORIZED, "Authorization: Bearer TOKEN is needed");
        refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return Err(refused);
    }
    let allowed = if path == "/v1/classify" { Method::POST } else { Method::GET };
    let known = matches!(path.as_str(), "/" | "/healthz" | "/metrics" | "/v1/state" | "/v1/frame" | "/v1/classify");
    if !known {
        return Err(error(StatusCode::NOT_FOUND, "there are /, /healthz, /metrics, /v1/state, /v1/frame and POST /v1/classify"));
    }
    if request.method() != allowed {
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
        _ => classify(request, web).await?,
    })
}

fn is_local<B>(request: &Request<B>) -> bool {
    let Some(host) = request.headers().get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
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
    if code == StatusCode::SERVICE_UNAVAILABLE {
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
    json!({
        "about": web.about,
        "uptime_s": shared.uptime().as_secs(),
        "camera": camera_state(shared),
        "number": live.number,
        "frame": live.frame.as_ref().map(|(info, _)| json!({
            "sequence": info.sequence, "width": info.width, "height": info.height, "format": info.format.name(),
        })),
        "age_s": live.at.map(|at| at.elapsed().as_secs_f32()),
        "top": live.top,
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
    })
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
    let number = {
        let live = lock(&web.shared.live);
        match &live.frame {
            None => return none(),
            Some((info, payload)) if info.format == PixelFormat::Jpeg => {
                return typed(StatusCode::OK, "image/jpeg", payload.clone());
            }
            Some(_) => live.number,
        }
    };
    let cached = lock(&web.picture).clone();
    if cached.0 == number {
        return typed(StatusCode::OK, "image/jpeg", cached.1);
    }
    let for_encoder = web.clone();
    let encoded = tokio::task::spawn_blocking(move || {
        let web = for_encoder;
        let mut picture = lock(&web.picture);
        let (info, payload, number) = {
            let live = lock(&web.shared.live);
            let (info, payload) = live.frame.as_ref()?;
            if picture.0 == live.number {
                return Some(picture.1.clone());
            }
            (*info, payload.clone(), live.number)
        };
        let file = pixels::to_jpeg(&Frame { info, payload: &payload }, QUALITY).ok()?;
        *picture = (number, file.into());
        Some(picture.1.clone())
    });
    match encoded.await {
        Ok(Some(file)) => typed(StatusCode::OK, "image/jpeg", file),
        _ => none(),
    }
}

async fn classify(request: Request<Incoming>, web: &Arc<Web>) -> Result<Answer, Answer> {
    let top = match request.uri().query().unwrap_or("").split('&').find_map(|p| p.strip_prefix("top=")) {
        None => 5,
        Some(text) => match text.parse() {
            Ok(n @ 1..=10_000) => n,
            _ => return Err(cut(StatusCode::BAD_REQUEST, "top is a number from 1 to 10000")),
        },
    };
    let bytes = timeout(BODY_TIMEOUT, body(request.into_body(), web))
        .await
        .map_err(|_| cut(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))??;
    if bytes.0.is_empty() {
        return Err(error(StatusCode::BAD_REQUEST, "the body is the picture: PNG, JPEG, BMP or PNM"));
    }
    let busy = || error(StatusCode::SERVICE_UNAVAILABLE, "too many pictures are waiting; try again");
    let (bytes, _held) = bytes;
    let answer = web.desk.submit(bytes, top).map_err(|_| busy())?;
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
async fn body(mut body: Incoming, web: &Web) -> Result<(Vec<u8>, Option<tokio::sync::OwnedSemaphorePermit>), Answer> {
    let limit = web.max_body;
    let too_large = || cut(StatusCode::PAYLOAD_TOO_LARGE, &format!("a body has at most {limit} bytes"));
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let (mut bytes, mut held) = (Vec::new(), None::<tokio::sync::OwnedSemaphorePermit>);
    while let Some(part) = body.frame().await {
        let part = part.map_err(|_| cut(StatusCode::BAD_REQUEST, "the body is broken"))?;
        let Some(part) = part.data_ref() else { continue };
        if bytes.len() + part.len() > limit {
            return Err(too_large());
        }
        let more = web.buffered.clone().try_acquire_many_owned(part.len() as u32);
        let more = more.map_err(|_| cut(StatusCode::SERVICE_UNAVAILABLE, "too many bodies are being received; try again"))?;
        match &mut held {
            Some(held) => held.merge(more),
            None => held = Some(more),
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
    fn only_names_of_this_computer_are_local() {
        let host = |name: &str| is_local(&Request::builder().header(header::HOST, name).body(()).unwrap());
        for name in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.8.0.1:80", "[::1]:8080", "[::1]"] {
            assert!(host(name), "{name}");
        }
        for name in ["evil.example", "evil.example:8080", "192.168.1.2", "localhost.evil.example", "127.0.0.1.evil.example:1", ""] {
            assert!(!host(name), "{name}");
        }
        assert!(is_local(&Request::new(())));
        assert!(is_loopback(&"[::ffff:127.0.0.1]:1".parse().unwrap()) && !is_loopback(&"0.0.0.0:1".parse().unwrap()));
    }
}
