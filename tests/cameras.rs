//! `edge-infer --camera` on HTTP servers, programs and devices: every trouble costs the frames it touches, and no more.
//! (The frame link of our own firmware is in `camera.rs`; Video4Linux2 on a kernel's virtual camera is `tools/test-v4l2`.)

mod streams;

use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use streams::{COUNT, MODEL, PATIENCE, PICTURES, Running, answers, edge_infer};

/// The sample pictures as JPEG files, what edge-infer says of them, and their pixels.
struct Samples {
    files: Vec<Vec<u8>>,
    logits: Vec<Value>,
    pixels: Vec<Vec<u8>>,
}

fn samples() -> Samples {
    let folder = tempfile::tempdir().unwrap();
    let mut names: Vec<_> = std::fs::read_dir(PICTURES).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let (mut files, mut pixels) = (vec![], vec![]);
    for (i, name) in names.iter().enumerate() {
        let picture = image::open(name).unwrap().into_luma8();
        let mut file = Vec::new();
        JpegEncoder::new_with_quality(&mut file, 95).encode(picture.as_raw(), 28, 28, ExtendedColorType::L8).unwrap();
        std::fs::write(folder.path().join(format!("{i}.jpg")), &file).unwrap();
        files.push(file);
        pixels.push(picture.into_raw());
    }
    let logits = logits_of(folder.path());
    assert_eq!((files.len(), logits.len()), (COUNT, COUNT));
    Samples { files, logits, pixels }
}

fn logits_of(folder: &Path) -> Vec<Value> {
    let mut command = edge_infer();
    command.args(["--model", MODEL, "--json", "--logits", "--image"]).arg(folder);
    answers(command).lines.into_iter().map(|mut answer| answer["logits"].take()).collect()
}

fn camera(address: &str, more: &[&str]) -> Running {
    let mut command = edge_infer();
    command.args(["--model", MODEL, "--json", "--logits", "--camera", address]).args(more);
    Running::start(command)
}

/// Which sample an answer is of.
fn sample(answer: &Value, samples: &Samples) -> usize {
    samples.logits.iter().position(|l| *l == answer["logits"]).unwrap_or_else(|| panic!("of no sample: {answer}"))
}

fn seen(answer: &Value) -> (u64, u64, u64, u64) {
    let number = |what: &str| answer["link"][what].as_u64().unwrap();
    (number("received"), number("dropped"), number("corrupted"), number("connections"))
}

/// Nothing was lost; the next frame may have come already.
fn is_clean((received, dropped, corrupted, connections): (u64, u64, u64, u64), answered: u64, opened: u64) {
    assert!((answered..=answered + 1).contains(&received), "{received} received, {answered} answered");
    assert_eq!((dropped, corrupted, connections), (0, 0, opened));
}

/// A server that does what a test says.
struct Server(TcpListener);

impl Server {
    fn start() -> Self {
        Server(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The next client, and the head of its request.
    fn accept(&self) -> (TcpStream, String) {
        let stream = self.0.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(|l| l.unwrap()).take_while(|l| !l.is_empty());
        let head = lines.collect::<Vec<_>>().join("\n");
        (stream, head)
    }

    /// One that is given a stream.
    fn stream(&self, head: &str) -> TcpStream {
        let mut stream = self.accept().0;
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }
}

const MULTIPART: &str = "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n";

/// A part as most cameras write it.
fn part(file: &[u8]) -> Vec<u8> {
    [format!("\r\n--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", file.len()).as_bytes(), file].concat()
}

/// A part that says nothing of its length.
fn bare(file: &[u8]) -> Vec<u8> {
    [b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n", file].concat()
}

/// The file with a comment in it that looks like the stream around it.
fn with_boundary_inside(file: &[u8]) -> Vec<u8> {
    let comment = part(b"\xFF\xD8\xFF\xDB\xFF\xD9");
    [&file[..2], &[0xFF, 0xFE], &(comment.len() as u16 + 2).to_be_bytes(), &comment, &file[2..]].concat()
}

#[test]
fn every_part_is_a_frame_however_it_is_framed() {
    let samples = samples();
    let server = Server::start();
    let mut running = camera(&format!("http://{}/stream", server.address()), &["--every-frame"]);
    let (mut stream, head) = server.accept();
    assert!(head.starts_with("GET /stream HTTP/1.1\n") && head.contains(&format!("host: {}", server.address())), "{head}");
    // In chunks, as esp32-camera sends it, cut anywhere.
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=frame\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    let bytes: Vec<u8> = samples.files.iter().flat_map(|f| part(f)).collect();
    for piece in bytes.chunks(501) {
        stream.write_all(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).unwrap();
    }
    for i in 0..COUNT {
        let answer = running.answer();
        assert_eq!(sample(&answer, &samples), i);
        is_clean(seen(&answer), i as u64 + 1, 1);
        assert_eq!((&answer["sequence"], &answer["format"], &answer["width"]), (&i.into(), &"jpeg".into(), &28.into()));
    }
    drop(stream);
    running.says("waiting for it");
    // HTTP/1.0, no lengths, another boundary than announced, padding, and boundaries inside of files.
    let mut stream = server.stream("HTTP/1.0 200 OK\r\nContent-type:multipart/x-mixed-replace;boundary=--other\r\n\r\n");
    for file in &samples.files {
        stream.write_all(&[bare(&with_boundary_inside(file)), vec![0; 33]].concat()).unwrap();
    }
    for i in 0..COUNT {
        let answer = running.answer();
        assert_eq!(sample(&answer, &samples), i);
        is_clean(seen(&answer), (COUNT + i) as u64 + 1, 2);
    }
    // Lengths that lie, both ways.
    for (i, lie) in [(0, 10), (1, 100_000), (2, 0)] {
        let head = format!("--frame\r\nContent-Length: {lie}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &samples.files[i]].concat()).unwrap();
        assert_eq!(sample(&running.answer(), &samples), i);
    }
    running.terminate();
    let (code, rest, stderr) = running.end();
    assert_eq!((code, rest.len()), (0, 0), "{stderr}");
    assert!(stderr.contains("23 frames") && stderr.contains("0 incomplete, 0 corrupted"), "{stderr}");
}

#[test]
fn half_frames_cost_themselves_and_the_counters_add_up() {
    let samples = samples();
    let server = Server::start();
    let mut running = camera(&format!("http://{}/", server.address()), &["--every-frame"]);
    let mut stream = server.stream(MULTIPART);
    let mut sent = 0;
    for i in 0..COUNT {
        // Cut in its scan, in its tables, after its first bytes.
        let half = &samples.files[(i + 1) % COUNT];
        let cut = [half.len() - 40, half.len() / 4, 5][i % 3];
        let bytes = [if i % 2 == 0 { part(&half[..cut]) } else { bare(&half[..cut]) }, part(&samples.files[i])].concat();
        stream.write_all(&bytes).unwrap();
        sent += bytes.len();
        let answer = running.answer();
        let (received, dropped, corrupted, _) = seen(&answer);
        assert_eq!((sample(&answer, &samples), received, dropped + corrupted), (i, i as u64 + 1, i as u64 + 1));
    }
    // Cut by the end of the connection, in the middle of a chunk of nothing.
    let last = part(&samples.files[0][..300]);
    stream.write_all(&last).unwrap();
    sent += last.len();
    drop(stream);
    running.says("waiting for it");
    let mut stream = server.stream(MULTIPART);
    stream.write_all(&part(&samples.files[4])).unwrap();
    sent += part(&samples.files[4]).len();
    let answer = running.answer();
    assert_eq!((sample(&answer, &samples), answer["sequence"].as_u64()), (4, Some(COUNT as u64)));
    running.terminate();
    let (_, _, stderr) = running.end();
    let whole: usize = samples.files.iter().chain([&samples.files[4]]).map(Vec::len).sum();
    assert!(stderr.contains(&format!("link: {sent} bytes, {} of them in no intact chunk", sent - whole)), "{sent} {whole} {stderr}");
    assert!(stderr.contains("opened 2 times"), "{stderr}");
}

#[test]
fn slow_servers_are_waited_for_and_dead_ones_come_back() {
    let samples = samples();
    let server = Server::start();
    let mut running = camera(&format!("http://{}/", server.address()), &["--every-frame"]);
    // It answers 503, then nothing but a closed connection, then late and in drops.
    let (mut stream, _) = server.accept();
    stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").unwrap();
    running.says("503");
    drop(stream);
    drop(server.accept());
    let (mut stream, _) = server.accept();
    std::thread::sleep(Duration::from_millis(700));
    stream.write_all(MULTIPART.as_bytes()).unwrap();
    let begun = Instant::now();
    for piece in part(&samples.files[3]).chunks(40) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(60));
    }
    let answer = running.answer();
    assert_eq!(sample(&answer, &samples), 3);
    // A frame is as old as its first byte.
    let age = answer["capture_to_label_ms"].as_f64().unwrap();
    assert!(age > 500.0 && age < begun.elapsed().as_secs_f64() * 1e3 + 100.0, "{age}");
    // A sender's clock: sent 300 ms late.
    for (time, wait) in [("5.000000", 0), ("5.100000", 400)] {
        std::thread::sleep(Duration::from_millis(wait));
        let head = format!("\r\n--frame\r\nX-Timestamp: {time}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &samples.files[1]].concat()).unwrap();
        let answer = running.answer();
        assert_eq!(answer["timestamp_us"], (time.parse::<f64>().unwrap() * 1e6) as u64);
        let age = answer["capture_to_label_ms"].as_f64().unwrap();
        assert!(wait == 0 || age > 290.0, "{age}");
    }
    assert_eq!(running.end_by_signal(), 0);
}

#[test]
fn passwords_and_tokens_are_sent_and_never_shown() {
    let samples = samples();
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let with_user = format!("http://Aladdin:open%20sesame@{}/x", server.address());
    let plain = format!("http://{}/x", server.address());
    // The example of RFC 7617.
    let basic = "authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
    let path = file.to_str().unwrap();
    for (address, secret, wanted) in [
        (&with_user, "", basic),
        (&plain, "Aladdin:open sesame\n", basic),
        (&plain, "0123456789abcdef", "authorization: Bearer 0123456789abcdef"),
        (&with_user, "Bearer x:y", "authorization: Bearer x:y"),
    ] {
        std::fs::write(&file, secret).unwrap();
        let options = ["--count", "1", "--camera-auth", path];
        let mut running = camera(address, if secret.is_empty() { &options[..2] } else { &options });
        let (mut stream, head) = server.accept();
        assert!(head.contains(wanted), "{wanted}: {head}");
        stream.write_all(&[MULTIPART.as_bytes(), &part(&samples.files[0])].concat()).unwrap();
        assert_eq!(sample(&running.answer(), &samples), 0);
        let (code, _, stderr) = running.end();
        assert!(code == 0 && !stderr.contains("sesame"), "{stderr}");
    }
    // Without one, it is not asked again and again.
    let running = camera(&plain, &[]);
    let (mut stream, head) = server.accept();
    assert!(!head.contains("authorization"), "{head}");
    stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n").unwrap();
    let (code, _, stderr) = running.end();
    assert!(code == 1 && stderr.contains("401") && stderr.contains("--camera-auth"), "{code} {stderr}");
}

#[test]
fn a_flood_of_parts_is_answered_with_the_newest() {
    let samples = samples();
    let server = Server::start();
    let mut running = camera(&format!("http://{}/", server.address()), &[]);
    let mut stream = server.stream(MULTIPART);
    const ROUNDS: usize = 300;
    let round: Vec<u8> = samples.files.iter().flat_map(|f| part(f)).collect();
    (0..ROUNDS).for_each(|_| stream.write_all(&round).unwrap());
    let (mut answered, last) = (0, (ROUNDS * COUNT - 1) as u64);
    loop {
        let answer = running.answer();
        answered += 1;
        let sequence = answer["sequence"].as_u64().unwrap();
        assert_eq!(sample(&answer, &samples), sequence as usize % COUNT);
        if sequence == last {
            assert_eq!(seen(&answer), (last + 1, 0, 0, 1));
            assert_eq!(answer["link"]["superseded"].as_u64().unwrap(), last + 1 - answered);
            break;
        }
    }
    assert_eq!(running.end_by_signal(), 0);
}

/// Raw frames of the samples, with this for every pixel's luma.
fn raw_file(folder: &Path, name: &str, samples: &Samples, frame: impl Fn(&[u8]) -> Vec<u8>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, samples.pixels.iter().flat_map(|p| frame(p)).collect::<Vec<_>>()).unwrap();
    path
}

#[test]
fn programs_give_raw_frames_of_every_layout() {
    let (samples, folder) = (samples(), tempfile::tempdir().unwrap());
    // Their pixels as files: the answers to compare with.
    let grey = tempfile::tempdir().unwrap();
    for (i, pixels) in samples.pixels.iter().enumerate() {
        let mut file = Vec::new();
        PngEncoder::new(&mut file).write_image(pixels, 28, 28, ExtendedColorType::L8).unwrap();
        std::fs::write(grey.path().join(format!("{i}.png")), file).unwrap();
    }
    let wanted = logits_of(grey.path());
    let chroma = |count: usize| vec![128; count];
    type Make<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let layouts: [(&str, Make); 6] = [
        ("gray8:28x28", &|p| p.to_vec()),
        ("rgb888:28x28", &|p| p.iter().flat_map(|v| [*v; 3]).collect()),
        ("yuyv:28x28:full", &|p| p.iter().flat_map(|v| [*v, 128]).collect()),
        ("uyvy:28x28:full", &|p| p.iter().flat_map(|v| [128, *v]).collect()),
        ("nv12:28x28:full", &|p| [p, &chroma(p.len() / 2)].concat()),
        ("yuv420:28x28:full", &|p| [p, &chroma(p.len() / 2)].concat()),
    ];
    for (format, make) in layouts {
        let path = raw_file(folder.path(), "raw", &samples, make);
        // With a piece of a frame at the end.
        let command = format!("exec:cat {0}; head -c 100 {0}", path.display());
        let mut running = camera(&command, &["--every-frame", "--frame-format", format, "--count", "25"]);
        for i in 0..25 {
            let answer = running.answer();
            assert_eq!(answer["logits"], wanted[i % COUNT], "{format}");
            assert_eq!(answer["sequence"], i);
        }
        let (code, _, stderr) = running.end();
        assert!(code == 0 && stderr.contains("2 incomplete"), "{format}: {stderr}");
        assert!(stderr.contains("it ended (exit status: 0)"), "{format}: {stderr}");
    }
}

#[test]
fn programs_that_die_are_started_again_and_end_with_us() {
    let (samples, folder) = (samples(), tempfile::tempdir().unwrap());
    let path = folder.path().join("mjpeg");
    std::fs::write(&path, samples.files.iter().flat_map(|f| [b"\0garbage".as_slice(), f].concat()).collect::<Vec<_>>()).unwrap();
    let (count, ids) = (folder.path().join("count"), folder.path().join("ids"));
    // It fails at once, is cut in the middle of a file, kills itself; then a pipeline that would run for ever.
    let script = format!(
        "echo x >> {count}; case $(wc -l < {count}) in
            1) exit 3;; 2) head -c 2000 {path}; exit 0;; 3) cat {path}; kill -9 $$;; *) echo $$ > {ids}; (cat {path}; sleep 1000) | cat;;
        esac",
        count = count.display(),
        path = path.display(),
        ids = ids.display()
    );
    let mut running = camera(&format!("exec:{script}"), &["--every-frame"]);
    running.says("exit status: 3");
    running.says("exit status: 0");
    running.says("signal: 9");
    let (mut frames, mut ends) = (0, 0);
    // The file was written to its end twice.
    while ends < 2 {
        let answer = running.answer();
        frames += 1;
        ends += usize::from(sample(&answer, &samples) == COUNT - 1);
        let (received, dropped, corrupted, connections) = seen(&answer);
        assert!((received >= frames, corrupted) == (true, 0), "{answer}");
        if ends == 2 {
            assert_eq!((received, dropped, connections), (frames, 1, 4));
        }
    }
    let group = std::fs::read_to_string(&ids).unwrap().trim().to_string();
    let alive = || {
        let stats = std::fs::read_dir("/proc").unwrap().filter_map(|e| std::fs::read_to_string(e.ok()?.path().join("stat")).ok());
        // pid (name) state parent group
        stats.filter(|s| s.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(2)) == Some(group.as_str())).count()
    };
    assert!(alive() >= 2, "a shell and its pipeline");
    assert_eq!(running.end_by_signal(), 0);
    let deadline = Instant::now() + PATIENCE;
    while alive() > 0 {
        assert!(Instant::now() < deadline, "processes of the group {group} are left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn libcamera_is_asked_for_frames_that_fit() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("rpicam-vid");
    let log = folder.path().join("log");
    // Stands for Raspberry Pi's program, of which only the command line and the output are known here: grey frames, ten at a time.
    std::fs::write(
        &program,
        format!(
            "#!/bin/sh
            echo \"$@\" >> {}
            for option; do case $option in --width=*) w=${{option#*=}};; --height=*) h=${{option#*=}};; esac; done
            head -c $((w * h * 15)) /dev/zero | tr '\\0' '\\200'",
            log.display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let run = |path: &str, more: &[&str]| {
        let mut command = edge_infer();
        command.env("PATH", path).args(["--model", MODEL, "--json", "--camera", "libcamera:1"]).args(more);
        command
    };
    let mut running = Running::start(run(&path, &["--every-frame", "--count", "25", "--set", "exposure=5000", "--set", "awb=indoor"]));
    for i in 0..25u64 {
        let answer = running.answer();
        assert_eq!((&answer["sequence"], &answer["width"], &answer["height"]), (&i.into(), &384.into(), &288.into()));
        // It may have ended already.
        assert!((i / 10 + 1..=i / 10 + 2).contains(&seen(&answer).3), "{answer}");
    }
    assert_eq!(running.end().0, 0);
    let asked = std::fs::read_to_string(log).unwrap();
    let wanted = ["--timeout=0", "--codec=yuv420", "--output=-", "--camera=1", "--shutter=5000", "--awb=indoor", "--nopreview"];
    assert!(wanted.iter().all(|w| asked.lines().next().unwrap().split(' ').any(|a| a == *w)), "{asked}");
    let refused = answers(run("/nonexistent", &[]));
    assert!(refused.code == 2 && refused.stderr.contains("rpicam-apps-lite"), "{}", refused.stderr);
    let refused = answers(run(&path, &["--set", "codec=h264"]));
    assert!(refused.code == 2 && refused.stderr.contains("awb"), "{}", refused.stderr);
}

#[test]
fn devices_that_are_none_are_refused_and_missing_ones_waited_for() {
    let mut running = camera("v4l2:/dev/video_none:640x480@30:mjpeg", &[]);
    running.says("waiting for it");
    assert_eq!(running.end_by_signal(), 1, "no frame");
    let refused = |arguments: &[&str], words: &str| {
        let mut command = edge_infer();
        command.args(["--model", MODEL]).args(arguments);
        let answers = answers(command);
        assert!(answers.code == 2 && answers.stderr.contains(words), "{arguments:?}: {} {}", answers.code, answers.stderr);
    };
    refused(&["--camera", "v4l2:/dev/null"], "no video device");
    refused(&["--camera", "v4l2:/dev/video0:640x"], "v4l2:DEVICE");
    refused(&["--camera", "https://a/b"], "exec:curl");
    refused(&["--camera", "exec:true", "--set", "exposure=1"], "--set");
    refused(&["--camera", "exec:true", "--frame-format", "yuv420:641x480"], "even");
    refused(&["--camera", "tcp:127.0.0.1:9", "--frame-format", "mjpeg"], "--frame-format");
    refused(&["--image", PICTURES, "--frame-format", "mjpeg"], "--camera");
}
