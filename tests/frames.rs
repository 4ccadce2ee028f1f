//! Pictures → `edge-infer record` → `edge-infer --frames`: the labels are those of the same pictures from files.

mod streams;

use edge_faults::{Faults, FaultyLink};
use std::path::Path;
use streams::{Answers, CHUNK, COUNT, MODEL, PICTURES, answers, from_files, label, record};

fn edge_infer() -> assert_cmd::Command {
    assert_cmd::Command::cargo_bin("edge-infer").unwrap()
}

fn from_stream(stream: &[u8]) -> Answers {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in");
    std::fs::write(&file, stream).unwrap();
    let mut command = streams::edge_infer();
    command.args(["--model", MODEL, "--json", "--logits", "--frames", "-"]).stdin(std::fs::File::open(file).unwrap());
    answers(command)
}

#[test]
fn frames_get_the_labels_of_their_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let files = from_files();
    assert_eq!((files.code, files.lines.len()), (0, COUNT), "{}", files.stderr);
    // Greys survive all but the last two exactly.
    for (format, exact) in [("gray8", true), ("yuv422", true), ("rgb888", true), ("rgb565", false), ("jpeg", false)] {
        let stream = std::fs::read(record(folder.path(), &["--format", format, "--fps", "10"], PICTURES)).unwrap();
        let frames = from_stream(&stream);
        assert_eq!((frames.code, frames.lines.len()), (0, COUNT), "{format}: {}", frames.stderr);
        for (i, (a, b)) in files.lines.iter().zip(&frames.lines).enumerate() {
            assert_eq!(label(a), label(b), "{format}: {}", a["image"]);
            assert!(!exact || a["logits"] == b["logits"], "{format}: {}", a["image"]);
            assert_eq!((&b["sequence"], &b["timestamp_us"], &b["format"]), (&i.into(), &(i * 100_000).into(), &format.into()));
        }
        assert!(frames.stderr.contains("skipped: 0 incomplete, 0 corrupted, 0 undecodable, 0 missing"), "{}", frames.stderr);
    }
}

#[test]
fn jpeg_files_are_sent_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("bag.jpg");
    image::open(Path::new(PICTURES).join("bag.png")).unwrap().to_rgb8().save(&picture).unwrap();
    let stream = std::fs::read(record(folder.path(), &[], picture.to_str().unwrap())).unwrap();
    let mut command = streams::edge_infer();
    command.args(["--model", MODEL, "--json", "--logits", "--image"]).arg(&picture);
    assert_eq!(answers(command).lines[0]["logits"], from_stream(&stream).lines[0]["logits"]);
}

#[test]
fn text_names_sequence_time_label_and_latency() {
    let folder = tempfile::tempdir().unwrap();
    let stream = record(folder.path(), &["--format", "rgb565", "--size", "64x48", "--fps", "4"], PICTURES);
    let output = edge_infer().args(["--model", MODEL, "--frames"]).arg(stream).assert().success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((&words[..4], words.last()), (&["1", "0.250000", "s", "Bag"][..], Some(&"ms")), "{text}");
}

#[test]
fn damage_costs_frames_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let stream = std::fs::read(record(folder.path(), &["--format", "gray8"], PICTURES)).unwrap();
    let files = from_files();
    let faults = Faults { bit_error_rate: 5e-5, drop: 0.02, duplicate: 0.1, reorder: 0.1, reorder_by: 2, disconnect: 0.01, garbage: 0.1 };
    let mut lost = 0;
    for seed in 0..8 {
        let (mut link, mut bytes) = (FaultyLink::new(faults, seed), Vec::new());
        // 28×28 bytes are six chunks of 128 and one of 16.
        for frame in stream.chunks(7 * 40 + 784) {
            frame.chunks(40 + CHUNK).for_each(|packet| link.send(packet, &mut bytes));
        }
        link.flush(&mut bytes);
        let frames = from_stream(&bytes);
        lost += COUNT - frames.lines.len();
        assert_eq!(frames.code, i32::from(frames.lines.is_empty()));
        for answer in &frames.lines {
            let picture = answer["sequence"].as_u64().unwrap() as usize;
            assert_eq!(answer["logits"], files.lines[picture]["logits"], "seed {seed}, frame {picture}");
        }
    }
    assert!(lost > 0 && lost < 8 * COUNT, "{lost} frames lost");
}

#[test]
fn streams_without_a_usable_frame_fail() {
    for stream in [&b""[..], &[0xED; 5000]] {
        let answers = from_stream(stream);
        assert_eq!((answers.code, answers.lines.len()), (1, 0));
        assert!(answers.stderr.contains("no frame could be classified"), "{}", answers.stderr);
    }
    // A whole frame that says it is JPEG, and is not.
    let payload = [7; 50];
    let info = edge_wire::FrameInfo::jpeg(8, 8, 50).unwrap();
    let stream: Vec<u8> = edge_wire::Chunks::new(info, &payload, 64).unwrap().flat_map(|c| [&c.header, c.payload].concat()).collect();
    let answers = from_stream(&stream);
    assert_eq!(answers.code, 1);
    assert!(answers.stderr.contains("1 undecodable"), "{}", answers.stderr);
}

#[test]
fn wrong_usage_is_2_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("x.frames");
    edge_infer().args(["--model", MODEL, "--frames", "-", "--image", PICTURES]).assert().code(2);
    edge_infer().args(["--model", MODEL]).assert().code(2);
    edge_infer().args(["record", "--format", "bayer", PICTURES, "-o"]).arg(&output).assert().code(2);
    edge_infer().args(["record", "--size", "0x5", PICTURES, "-o"]).arg(&output).assert().code(2);
    // An odd width in YUV 4:2:2 shows only once pictures are read.
    edge_infer().args(["record", "--format", "yuv422", "--size", "27x28", PICTURES, "-o"]).arg(&output).assert().code(1);
    edge_infer().args(["--model", MODEL, "--frames"]).arg(&output).assert().code(1);
    assert!(!output.exists());
}

/// A stream of garbage must not fill the log.
#[test]
fn a_thousand_undecodable_frames_are_a_few_lines() {
    let folder = tempfile::tempdir().unwrap();
    let stream = folder.path().join("bad.frames");
    let mut bytes = Vec::new();
    for sequence in 0..1000 {
        let info = edge_wire::FrameInfo { sequence, ..edge_wire::FrameInfo::jpeg(64, 64, 4).unwrap() };
        for chunk in edge_wire::Chunks::new(info, &[0xFF, 0xD8, 0xFF, 0xD9], 1024).unwrap() {
            bytes.extend_from_slice(&chunk.header);
            bytes.extend_from_slice(chunk.payload);
        }
    }
    std::fs::write(&stream, bytes).unwrap();
    let mut command = streams::edge_infer();
    command.args(["--model", MODEL, "--json", "--frames"]).arg(&stream);
    let answers = answers(command);
    assert!(answers.code == 1 && answers.stderr.contains("1000 undecodable"), "{}", answers.stderr);
    let lines = answers.stderr.lines().filter(|l| l.contains("error: ") && l.contains(": frame ")).count();
    assert!((1..=12).contains(&lines), "{lines}");
}
