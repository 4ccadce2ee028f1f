//! `edge-infer serve` over real sockets: what it answers, what it refuses, and how it ends.

mod streams;

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};
use streams::{COUNT, MODEL, PATIENCE, PICTURES, Running, edge_infer, frames, from_files, label};

struct Server {
    running: Running,
    web: Web,
}

impl Deref for Server {
    type Target = Web;

    fn deref(&self) -> &Web {
        &self.web
    }
}

#[derive(Clone, Copy)]
struct Web {
    address: SocketAddr,
}

impl Server {
    fn start(more: &[&str]) -> Self {
        Server::with_variables(more, &[])
    }

    fn with_variables(more: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = edge_infer();
        command.args(["serve", "--model", MODEL, "--listen", "127.0.0.1:0"]).args(more).envs(variables.iter().copied());
        let mut running = Running::start(command);
        let line = running.says("http://");
        let address = line["http://".len()..].split(' ').next().unwrap().parse().unwrap();
        Server { running, web: Web { address } }
    }
}

impl Web {
    /// Connects from 127.0.0.`last`: another address for each number.
    fn connect_from(&self, last: u8) -> TcpStream {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let stream = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&stream, &SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        connect(&stream, &self.address).unwrap();
        let stream = TcpStream::from(stream);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes, gives status code, headers and body of the answer.
    fn raw(&self, request: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = self.connect();
        // It may answer, and close, before it has read everything.
        let _ = stream.write_all(request);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        parse(&all)
    }

    fn get(&self, path: &str) -> (u16, String, Vec<u8>) {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
    }

    fn json(&self, path: &str) -> Value {
        let (code, _, body) = self.get(path);
        assert_eq!(code, 200);
        serde_json::from_slice(&body).unwrap()
    }

    fn post(&self, path: &str, body: &[u8]) -> (u16, Value) {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        let (code, _, answer) = self.raw(&[head.as_bytes(), body].concat());
        (code, serde_json::from_slice(&answer).unwrap_or_else(|e| panic!("{code} {e}: {}", String::from_utf8_lossy(&answer))))
    }

    /// A number of `/metrics`.
    fn metric(&self, name: &str) -> f64 {
        let (code, _, body) = self.get("/metrics");
        assert_eq!(code, 200);
        let text = String::from_utf8(body).unwrap();
        let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("{name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

fn parse(answer: &[u8]) -> (u16, String, Vec<u8>) {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {}", String::from_utf8_lossy(answer)));
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head, answer[end + 4..].to_vec())
}

fn picture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{PICTURES}/{name}.png")).unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: it does not come to that");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn posted_pictures_get_the_labels_of_files() {
    let server = Server::start(&[]);
    for answer in from_files().lines {
        let bytes = std::fs::read(answer["image"].as_str().unwrap()).unwrap();
        let (code, posted) = server.post("/v1/classify?top=2", &bytes);
        assert_eq!((code, label(&posted)), (200, label(&answer)), "{posted}");
        assert_eq!(posted["top"].as_array().unwrap().len(), 2);
        assert_eq!((&posted["width"], &posted["height"]), (&28.into(), &28.into()));
    }
    assert_eq!(server.metric("edge_infer_inference_seconds_count{source=\"post\"}"), COUNT as f64);
    // Chunked, in two parts.
    let bytes = picture("bag");
    let (one, two) = bytes.split_at(100);
    let mut request = b"POST /v1/classify HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for part in [one, two, &[]] {
        request.extend(format!("{:x}\r\n", part.len()).bytes());
        request.extend_from_slice(part);
        request.extend(b"\r\n");
    }
    let (code, _, body) = server.raw(&request);
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((code, label(&answer)), (200, "Bag"));
}

#[test]
fn what_is_no_picture_is_refused_with_a_reason() {
    let server = Server::start(&["--max-body", "300000"]);
    let refused = |body: &[u8], code: u16, word: &str| {
        let (got, answer) = server.post("/v1/classify", body);
        assert!(got == code && answer["error"].as_str().unwrap().contains(word), "{code} {word:?}: {got} {answer}");
    };
    refused(b"", 400, "picture");
    refused(b"hello", 422, "not a picture");
    let whole = picture("bag");
    refused(&whole[..whole.len() / 2], 422, "");
    let mut jpeg = Vec::new();
    let pixels: Vec<u8> = (0..64 * 64 * 3).map(|i| (i * 7 % 251) as u8).collect();
    image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode(&pixels, 64, 64, image::ExtendedColorType::Rgb8).unwrap();
    assert_eq!(server.post("/v1/classify", &jpeg).0, 200);
    refused(&jpeg[..jpeg.len() - 200], 422, "cut");
    // 10,000 × 10,000 pixels in 100 KB.
    let mut bomb = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new_with_quality(
        &mut bomb,
        image::codecs::png::CompressionType::Best,
        image::codecs::png::FilterType::NoFilter,
    );
    image::ImageEncoder::write_image(encoder, &vec![0; 100_000_000], 10_000, 10_000, image::ExtendedColorType::L8).unwrap();
    assert!(bomb.len() < 300_000, "{}", bomb.len());
    refused(&bomb, 422, "10000×10000");
    refused(&vec![0; 300_001], 413, "at most 300000");
    let head = "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n";
    assert_eq!(server.raw(head.as_bytes()).0, 413, "1 GB must be refused before it is sent");
    // The same without saying so.
    let mut endless = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    (0..400).for_each(|_| endless.extend([b"400\r\n".as_slice(), &[7; 1024], b"\r\n"].concat()));
    assert_eq!(server.raw(&endless).0, 413);
    for (path, code) in [("/v1/classify?top=0", 400), ("/v1/classify?top=x", 400), ("/", 405), ("/v1/state", 405), ("/nothing", 404)] {
        assert_eq!(server.post(path, &whole).0, code, "{path}");
    }
    assert_eq!(server.get("/v1/classify").0, 405);
    let (code, _, body) = server.raw(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!((code, body.len()), (200, 0));
    assert_eq!(server.raw(b"nonsense\r\n\r\n").0, 400);
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    assert_eq!(server.raw(long.as_bytes()).0, 431);
    assert_eq!(server.post("/v1/classify", &whole).0, 200, "it lives on");
}

#[test]
fn a_camera_is_shown_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("camera.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let sysfs = folder.path().join("sys");
    std::fs::create_dir_all(sysfs.join("class/thermal/thermal_zone0")).unwrap();
    std::fs::write(sysfs.join("class/thermal/thermal_zone0/temp"), "54321").unwrap();
    let camera = format!("unix:{}", path.display());
    let server = Server::with_variables(&["--camera", &camera], &[("EDGE_SYSFS", sysfs.to_str().unwrap())]);
    let mut link = listener.accept().unwrap().0;
    assert_eq!(server.get("/v1/frame").0, 204);
    let frames = frames();
    for (i, frame) in frames.iter().enumerate() {
        link.write_all(frame).unwrap();
        wait_until("classified", || server.json("/v1/state")["classified"] == i + 1);
    }
    let state = server.json("/v1/state");
    assert_eq!(label(&state), label(from_files().lines.last().unwrap()));
    assert_eq!((&state["frame"]["width"], &state["frame"]["format"], &state["dropped"]), (&28.into(), &"gray8".into(), &0.into()));
    assert_eq!(state["history_ms"].as_array().unwrap().len(), COUNT);
    wait_until("the temperature", || server.json("/v1/state")["celsius"] == 54.321);
    let (code, head, jpeg) = server.get("/v1/frame");
    let shown = image::load_from_memory(&jpeg).unwrap();
    assert!(code == 200 && head.contains("image/jpeg") && (shown.width(), shown.height()) == (28, 28));
    assert_eq!(server.metric("edge_infer_capture_to_label_seconds_count"), COUNT as f64);
    assert_eq!(server.metric("edge_infer_camera_frames_total{what=\"received\"}"), COUNT as f64);
    assert_eq!(server.metric("edge_infer_temperature_celsius{zone=\"thermal\",index=\"0\"}"), 54.321);
    let (code, head, page) = server.get("/");
    let page = String::from_utf8(page).unwrap();
    assert!(code == 200 && head.contains("content-security-policy") && page.contains("/v1/state") && !page.contains("http"), "{head}");
    // Unplugged, and plugged in again.
    drop(link);
    wait_until("waiting", || server.json("/healthz")["camera"] == "waiting");
    let mut link = listener.accept().unwrap().0;
    link.write_all(&frames[0]).unwrap();
    wait_until("one more", || server.json("/v1/state")["classified"] == COUNT + 1);
    assert_eq!(server.json("/healthz")["camera"], "connected");
}

#[test]
fn slow_clients_lose_their_connection_and_too_many_are_turned_away() {
    let server = Server::start(&["--max-connections", "3"]);
    let start = Instant::now();
    let mut slow: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for (stream, bytes) in
        slow.iter_mut().zip(["", "GET / HT", "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"])
    {
        stream.write_all(bytes.as_bytes()).unwrap();
    }
    wait_until("full", || server.get("/healthz").0 == 503);
    assert!(start.elapsed() < Duration::from_secs(5), "turned away at once");
    for (i, stream) in slow.iter_mut().enumerate() {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(i < 2 || parse(&answer).0 == 408, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    wait_until("free again", || server.get("/healthz").0 == 200);
    assert_eq!(server.metric("edge_infer_http_requests_total{code=\"408\"}"), 1.0);
}

#[test]
fn overload_is_said_at_once_and_breaks_nothing() {
    let server = Server::start(&["--queue", "1"]);
    // Pictures that take their time to be decoded.
    let mut large = Vec::new();
    let pixels: Vec<u8> = (0..2000 * 2000 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut large, 60).encode(&pixels, 2000, 2000, image::ExtendedColorType::Rgb8).unwrap();
    let codes: Vec<u16> = std::thread::scope(|scope| {
        let (web, large) = (server.web, &large);
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(move || web.post("/v1/classify", large).0)).collect();
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let count = |code| codes.iter().filter(|c| **c == code).count();
    assert!(count(200) >= 1 && count(503) >= 1 && count(200) + count(503) == 16, "{codes:?}");
    assert_eq!(server.metric("edge_infer_http_requests_total{code=\"503\"}"), count(503) as f64);
    assert_eq!(server.post("/v1/classify", &picture("bag")).0, 200);
}

#[test]
fn tokens_and_host_names_guard_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let refuses = |arguments: &[&str], words: &str| {
        let mut command = edge_infer();
        command.args(["serve", "--model", MODEL]).args(arguments);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains(words), "{arguments:?}: {text}");
    };
    refuses(&["--listen", "0.0.0.0:0"], "--token-file");
    std::fs::write(&file, "short\n").unwrap();
    refuses(&["--token-file", file.to_str().unwrap()], "16 or more");

    let server = Server::start(&[]);
    for (host, code) in [("localhost", 200), ("127.0.0.1:80", 200), ("evil.example", 403)] {
        let request = format!("GET /v1/state HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(server.raw(request.as_bytes()).0, code, "{host}");
    }
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    let server = Server::with_variables(&[], &[("EDGE_TOKEN_FILE", file.to_str().unwrap())]);
    let with = |authorization: &str| {
        server.raw(format!("GET /metrics HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n{authorization}\r\n").as_bytes()).0
    };
    assert_eq!(with(""), 401);
    assert_eq!(with("Authorization: Bearer 0123456789abcdee\r\n"), 401);
    assert_eq!(with("Authorization: Bearer 0123456789abcdef0\r\n"), 401);
    assert_eq!(with("Authorization: Bearer 0123456789abcdef\r\n"), 200);
    assert_eq!((server.get("/").0, server.get("/healthz").0, server.post("/v1/classify", b"x").0), (200, 200, 401));
}

#[test]
fn it_stops_gracefully_and_tells_systemd() {
    let folder = tempfile::tempdir().unwrap();
    let notify = std::os::unix::net::UnixDatagram::bind(folder.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let socket = folder.path().join("notify");
    let server = Server::with_variables(&[], &[("NOTIFY_SOCKET", socket.to_str().unwrap()), ("WATCHDOG_USEC", "600000")]);
    let mut told = Vec::new();
    let mut hear = |wanted: &str| {
        while !told.iter().any(|t: &String| t.contains(wanted)) {
            let mut buffer = [0; 256];
            let n = notify.recv(&mut buffer).unwrap_or_else(|e| panic!("{wanted}: {e}, {told:?}"));
            told.push(String::from_utf8_lossy(&buffer[..n]).into());
        }
        told.clear();
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    // A request under way is answered; idle connections do not hold it up.
    let idle = server.connect();
    let mut busy = server.connect();
    let body = picture("bag");
    busy.write_all(format!("POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes()).unwrap();
    busy.write_all(&body[..10]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    server.running.terminate();
    hear("STOPPING=1");
    wait_until("no more connections", || TcpStream::connect(server.address).is_err());
    busy.write_all(&body[10..]).unwrap();
    let mut answer = Vec::new();
    busy.read_to_end(&mut answer).unwrap();
    assert_eq!(parse(&answer).0, 200);
    let _ = idle.shutdown(Shutdown::Both);
    let (code, _, stderr) = server.running.end();
    assert!(code == 0 && stderr.contains("1 posted pictures classified"), "{stderr}");
}

#[test]
fn pages_of_other_sites_are_refused_and_the_log_stays_short() {
    let mut server = Server::start(&[]);
    let web = server.web;
    let body = picture("bag");
    let ask = |start: &str, headers: &str, body: &[u8]| {
        let head = format!("{start} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        web.raw(&[head.as_bytes(), body].concat())
    };
    let host = format!("Host: {}\r\n", web.address);
    assert_eq!(ask("POST /v1/classify", &host, &body).0, 200);
    assert_eq!(ask("POST /v1/classify", &format!("{host}Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", web.address), &body).0, 200);
    for (start, headers, code) in [
        ("POST /v1/classify", format!("{host}Origin: http://evil.example\r\n"), 403),
        ("POST /v1/classify", format!("{host}Origin: null\r\nSec-Fetch-Site: cross-site\r\n"), 403),
        ("GET /v1/frame", format!("{host}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n"), 403),
        ("GET /v1/state", format!("{host}Sec-Fetch-Site: same-site\r\n"), 403),
        ("GET /", format!("{host}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n"), 200),
        ("GET /v1/state", format!("{host}Host: evil.example\r\n"), 400),
        ("GET /v1/state", String::new(), 400),
        ("GET http://evil.example/v1/state", host.clone(), 400),
        ("GET http://evil.example/v1/state", "Host: evil.example\r\n".into(), 403),
    ] {
        assert_eq!(ask(start, &headers, b"").0, code, "{start} {headers}");
    }
    // Nobody embeds what is answered.
    for path in ["/", "/healthz", "/metrics", "/v1/state", "/v1/frame", "/nothing"] {
        let head = server.get(path).1;
        for line in [
            "cross-origin-resource-policy: same-origin",
            "cross-origin-embedder-policy: require-corp",
            "cross-origin-opener-policy: same-origin",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
        ] {
            assert!(head.contains(line), "{path}: {line} in {head}");
        }
    }
    server.running.says("denied: 127.0.0.1: POST /v1/classify: 403 a page of another site asked for this");
    for _ in 0..200 {
        assert_eq!(ask("GET /v1/state", &format!("{host}Origin: http://evil.example\r\n"), b"").0, 403);
    }
    server.running.terminate();
    let (_, _, said) = server.running.end();
    let lines = said.matches("denied: ").count();
    assert!((8..=12).contains(&lines), "{lines}: {said}");
}

#[test]
fn one_neighbour_cannot_lock_the_others_out() {
    let server = Server::start(&["--max-connections", "20", "--max-rate", "50"]);
    // Another address takes every connection, and renews what it loses.
    let mut hoard: Vec<_> = (0..40).map(|_| server.connect_from(2)).collect();
    wait_until("all are taken", || {
        let mut stream = server.connect_from(2);
        let mut answer = Vec::new();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).contains(" 503 ")
    });
    for _ in 0..15 {
        assert_eq!(server.get("/healthz").0, 200, "a second address always gets a place");
        hoard.push(server.connect_from(2));
    }
    drop(hoard);
    // Bodies that never end hold memory: half of it at most.
    let head = "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8388608\r\n\r\n";
    let part = vec![0; (8 << 20) - 1];
    let _holding: Vec<_> = (0..12)
        .map(|_| {
            let mut stream = server.connect_from(2);
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&part));
            stream
        })
        .collect();
    assert_eq!(server.post("/v1/classify", &picture("bag")).0, 200);
    let large = [picture("bag"), vec![0; 7 << 20]].concat();
    assert_eq!(server.post("/v1/classify", &large).0, 200, "there is memory left for a large one, too");
    // Requests: one address has used up its own.
    let mut busy = server.connect_from(3);
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    busy.write_all(&request.repeat(200)).unwrap();
    busy.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut answers = Vec::new();
    let _ = busy.read_to_end(&mut answers);
    let text = String::from_utf8_lossy(&answers);
    assert!(text.matches(" 200 OK").count() >= 50 && text.matches(" 429 ").count() >= 50, "{text}");
    assert_eq!(server.get("/healthz").0, 200);
    assert!(server.metric("edge_infer_http_requests_total{code=\"429\"}") >= 50.0);
}

#[test]
fn clients_that_do_not_read_a_frame_share_one_copy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("camera.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = Server::start(&["--camera", &format!("unix:{}", path.display())]);
    let mut link = listener.accept().unwrap().0;
    // A JPEG file with 16 MB behind its end, as cameras pad theirs.
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode(&[90; 64 * 64 * 3], 64, 64, image::ExtendedColorType::Rgb8).unwrap();
    jpeg.resize(16 << 20, 0);
    let mut send = |sequence: u32| {
        let info = edge_wire::FrameInfo { sequence, ..edge_wire::FrameInfo::jpeg(64, 64, jpeg.len() as u32).unwrap() };
        for chunk in edge_wire::Chunks::new(info, &jpeg, edge_wire::MAX_CHUNK).unwrap() {
            link.write_all(&chunk.header).unwrap();
            link.write_all(chunk.payload).unwrap();
        }
        wait_until("classified", || server.json("/v1/state")["classified"] == sequence + 1);
    };
    send(0);
    let before = server.metric("process_resident_memory_bytes");
    let mut clients = Vec::new();
    for sequence in 1..=8 {
        for _ in 0..5 {
            let mut client = server.connect();
            client.write_all(b"GET /v1/frame HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut status = [0; 12];
            client.read_exact(&mut status).unwrap();
            assert_eq!(&status, b"HTTP/1.1 200");
            clients.push(client);
        }
        send(sequence);
    }
    // 40 clients; four copies are let out, and the frame, its successor and the parser's buffer are there as well.
    let grown = (server.metric("process_resident_memory_bytes") - before) / f64::from(1 << 20);
    assert!(grown < 120.0, "{grown} MiB");
}

#[test]
fn it_ends_soon_however_busy_it_is() {
    let server = Server::start(&[]);
    let mut large = Vec::new();
    let pixels: Vec<u8> = (0..3000 * 3000 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut large, 50).encode(&pixels, 3000, 3000, image::ExtendedColorType::Rgb8).unwrap();
    let head = |n: usize| format!("POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {n}\r\n\r\n");
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        let whole = i % 2 == 0;
        client.write_all(head(large.len()).as_bytes()).unwrap();
        let _ = client.write_all(if whole { &large } else { &large[..100] });
    }
    let start = Instant::now();
    server.running.terminate();
    let code = server.running.end().0;
    assert!(code == 0 && start.elapsed() < Duration::from_secs(3), "{code} after {:?}", start.elapsed());
}

#[test]
fn posted_pictures_are_turned_as_exif_asks_for() {
    let server = Server::start(&[]);
    let mut file = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut file);
    let exif = b"II\x2A\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    image::ImageEncoder::set_exif_metadata(&mut encoder, exif).unwrap();
    image::ImageEncoder::write_image(encoder, &[9; 40 * 20], 40, 20, image::ExtendedColorType::L8).unwrap();
    let (code, answer) = server.post("/v1/classify", &file);
    assert_eq!((code, &answer["width"], &answer["height"]), (200, &20.into(), &40.into()));
}

/// A file of 300 KB whose colour profile unpacks to 256 MB.
#[test]
fn colour_profiles_take_no_memory() {
    let server = Server::start(&[]);
    let mut file = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut file);
    image::ImageEncoder::set_icc_profile(&mut encoder, vec![0; 256 << 20]).unwrap();
    image::ImageEncoder::write_image(encoder, &[9; 28 * 28], 28, 28, image::ExtendedColorType::L8).unwrap();
    assert!(file.len() < 1 << 20, "{}", file.len());
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.running.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u32>().unwrap() / 1024
    };
    let before = peak();
    // The profile is not used; whether the file is refused or read without it does not matter.
    assert!(matches!(server.post("/v1/classify", &file).0, 200 | 422));
    assert!(peak() - before < 64, "{before} to {} MB", peak());
}
