//! `edge-infer --camera` on real sockets and terminals that break, lie, flood and fall silent.

mod streams;

use edge_faults::{Faults, FaultyLink};
use rustix::fs::OFlags;
use rustix::pty;
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use streams::{CHUNK, COUNT, MODEL, PATIENCE, PICTURES, Running, answers, edge_infer, frames, from_files, label, record};

fn camera(address: &str, more: &[&str]) -> Running {
    let mut command = edge_infer();
    command.args(["--model", MODEL, "--json", "--logits", "--camera", address]).args(more);
    Running::start(command)
}

fn accept_tcp(listener: &TcpListener) -> TcpStream {
    let stream = listener.accept().unwrap().0;
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn accept_unix(listener: &UnixListener) -> UnixStream {
    let stream = listener.accept().unwrap().0;
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn is_picture(answer: &Value, files: &[Value], picture: usize) {
    assert_eq!(answer["sequence"], picture);
    assert_eq!(answer["logits"], files[picture]["logits"], "frame {picture}");
}

#[test]
fn a_tcp_link_that_comes_late_and_breaks_loses_the_broken_frame_only() {
    let (frames, files) = (frames(), from_files().lines);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut running = camera(&format!("tcp:{port}"), &["--count", "9"]);
    running.says("waiting for it");
    let listener = TcpListener::bind(port).unwrap();
    let mut link = accept_tcp(&listener);
    for (i, frame) in frames[..3].iter().enumerate() {
        link.write_all(&[0xED; 57]).unwrap();
        link.write_all(frame).unwrap();
        is_picture(&running.answer(), &files, i);
    }
    // In the middle of a chunk.
    link.write_all(&frames[3][..500]).unwrap();
    drop(link);
    let mut link = accept_tcp(&listener);
    for (i, frame) in frames.iter().enumerate().skip(4) {
        link.write_all(frame).unwrap();
        let answer = running.answer();
        is_picture(&answer, &files, i);
        let seen = &answer["link"];
        assert_eq!(
            (&seen["received"], &seen["dropped"], &seen["corrupted"], &seen["connections"]),
            (&i.into(), &1.into(), &0.into(), &2.into())
        );
        let (whole, part) = (answer["capture_to_label_ms"].as_f64().unwrap(), answer["latency_ms"].as_f64().unwrap());
        assert!(whole >= part && whole < 10_000.0, "{answer}");
    }
    let (code, rest, stderr) = running.end();
    assert_eq!((code, rest.len()), (0, 0), "{stderr}");
    assert!(stderr.contains("9 frames") && stderr.contains("capture to label") && stderr.contains("opened 2 times"), "{stderr}");
}

#[test]
fn a_flood_is_answered_with_its_newest_frames() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("camera.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let running = camera(&format!("unix:{}", path.display()), &[]);
    let mut link = accept_unix(&listener);
    // One picture, again and again, with sequences of a camera; far faster than any network.
    const SENT: u32 = 20_000;
    let info = edge_wire::FrameInfo::raw(edge_wire::PixelFormat::Gray8, 28, 28).unwrap();
    for sequence in 0..SENT {
        let info = edge_wire::FrameInfo { sequence, timestamp_us: sequence * 100, ..info };
        let bytes: Vec<u8> =
            edge_wire::Chunks::new(info, &[99; 784], 1024).unwrap().flat_map(|c| [&c.header, c.payload].concat()).collect();
        link.write_all(&bytes).unwrap();
    }
    let mut running = running;
    let mut answered = vec![];
    loop {
        let answer = running.answer();
        answered.push(answer["sequence"].as_u64().unwrap() as u32);
        if answered.last() == Some(&(SENT - 1)) {
            let seen = |what: &str| answer["link"][what].as_u64().unwrap();
            assert_eq!((seen("received"), seen("superseded")), (SENT.into(), u64::from(SENT) - answered.len() as u64));
            assert_eq!((seen("dropped"), seen("corrupted")), (0, 0));
            break;
        }
    }
    assert!(answered.is_sorted() && answered.len() < SENT as usize, "{}", answered.len());
    running.terminate();
    let (code, _, stderr) = running.end();
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn every_frame_makes_the_sender_wait_and_a_bad_link_costs_frames_only() {
    let (frames, files, folder) = (frames(), from_files().lines, tempfile::tempdir().unwrap());
    let path = folder.path().join("camera.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut running = camera(&format!("unix:{}", path.display()), &["--every-frame"]);
    let faults = Faults { bit_error_rate: 3e-5, drop: 0.01, duplicate: 0.1, reorder: 0.05, reorder_by: 2, disconnect: 0.002, garbage: 0.1 };
    let (mut faulty, mut accepted) = (FaultyLink::new(faults, 11), 0);
    // A connection each; the last one stays open to the end, lest a fifth be made.
    let mut open = None;
    for round in 0..4 {
        drop(open.take());
        let link = open.insert(accept_unix(&listener));
        let mut bytes = Vec::new();
        frames.iter().flat_map(|f| f.chunks(40 + CHUNK)).for_each(|packet| faulty.send(packet, &mut bytes));
        faulty.flush(&mut bytes);
        // The last frame goes through unharmed, so that there is an end to wait for: as a new session, for the sequence was used.
        let info =
            edge_wire::FrameInfo { session: 100 + round, ..edge_wire::FrameInfo::raw(edge_wire::PixelFormat::Gray8, 28, 28).unwrap() };
        edge_wire::Chunks::new(info, &[50; 784], 512).unwrap().for_each(|c| bytes.extend([&c.header, c.payload].concat()));
        link.write_all(&bytes).unwrap();
        let blank = loop {
            let answer = running.answer();
            let picture = answer["sequence"].as_u64().unwrap() as usize;
            if answer["logits"] == files[picture]["logits"] {
                accepted += 1;
            } else {
                break answer;
            }
        };
        assert_eq!(blank["sequence"], 0, "{blank}");
    }
    assert!((10..40).contains(&accepted), "{accepted} of 40 frames arrived");
    running.terminate();
    let (code, rest, stderr) = running.end();
    assert_eq!((code, rest.len()), (0, 0), "{stderr}");
    assert!(stderr.contains(" 0 superseded") && stderr.contains("opened 4 times"), "{stderr}");
}

/// A terminal whose other end is ours, under a name that stays, as udev gives to a device.
fn terminal(name: &Path) -> File {
    let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY | pty::OpenptFlags::CLOEXEC).unwrap();
    pty::grantpt(&master).unwrap();
    pty::unlockpt(&master).unwrap();
    let slave = pty::ptsname(&master, vec![]).unwrap();
    let _ = std::fs::remove_file(name);
    std::os::unix::fs::symlink(slave.to_str().unwrap(), name).unwrap();
    File::from(master)
}

#[test]
fn a_serial_line_is_raw_and_may_be_unplugged() {
    let (frames, files, folder) = (frames(), from_files().lines, tempfile::tempdir().unwrap());
    let name = folder.path().join("camera");
    let mut master = terminal(&name);
    let mut running = camera(name.to_str().unwrap(), &["--count", "6"]);
    running.says("open");
    // Bytes that a terminal which is not raw would eat, echo or change.
    master.write_all(&[3, 4, 10, 13, 17, 19, 26, 28, 127, 255]).unwrap();
    for (i, frame) in frames.iter().enumerate().take(3) {
        master.write_all(frame).unwrap();
        is_picture(&running.answer(), &files, i);
    }
    rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK).unwrap();
    let mut echo = [0; 64];
    assert!(rustix::io::read(&master, &mut echo[..]).is_err(), "something was echoed");
    drop(master);
    running.says("waiting for it");
    let mut master = terminal(&name);
    running.says("open");
    for (i, frame) in frames.iter().enumerate().take(6).skip(3) {
        master.write_all(frame).unwrap();
        is_picture(&running.answer(), &files, i);
    }
    assert_eq!(running.end().0, 0);
}

#[test]
fn frames_are_saved_whole_and_files_are_read_to_their_end() {
    let folder = tempfile::tempdir().unwrap();
    for (format, extension) in [("jpeg", "jpg"), ("rgb565", "png")] {
        let stream = record(folder.path(), &["--format", format, "--size", "32x24"], PICTURES);
        let saved = folder.path().join(format);
        let mut command = edge_infer();
        command.args(["--model", MODEL, "--json", "--camera"]).arg(stream).arg("--save").arg(&saved);
        let answers = answers(command);
        assert_eq!((answers.code, answers.lines.len()), (0, COUNT), "{}", answers.stderr);
        for answer in &answers.lines {
            let path = Path::new(answer["saved"].as_str().unwrap());
            let picture = image::open(path).unwrap();
            assert_eq!((picture.width(), picture.height()), (32, 24));
            let name = path.file_name().unwrap().to_str().unwrap();
            let words: Vec<_> = name.splitn(3, '-').collect();
            assert_eq!(words[1], answer["sequence"].to_string());
            let plain = label(answer).replace(['/', ' '], "-");
            assert_eq!(words[2], format!("{plain}.{extension}"));
        }
        assert_eq!(std::fs::read_dir(&saved).unwrap().count(), COUNT);
    }
}

#[test]
fn wrong_addresses_are_usage_and_missing_files_are_not() {
    let fails = |address: &str, more: &[&str], code| {
        let mut command = edge_infer();
        command.args(["--model", MODEL, "--camera", address]).args(more);
        let answers = answers(command);
        assert_eq!(answers.code, code, "{address}: {}", answers.stderr);
    };
    fails("tcp:nowhere", &[], 2);
    fails("/dev/ttyNONE:fast", &[], 2);
    fails("-", &["--image", PICTURES], 2);
    fails("/nonexistent/stream", &[], 1);
    fails(PICTURES, &[], 1);
    // A regular file as a socket's folder: the folder cannot be made.
    fails(MODEL, &["--save", &format!("{MODEL}/x")], 1);
    // No frame in it.
    fails(MODEL, &[], 1);
}
