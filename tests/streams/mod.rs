//! What tests of frame streams share: pictures, the streams made of them, the answers of `edge-infer`.
#![allow(dead_code)] // each test binary uses its part

use assert_cmd::cargo::CommandCargoExt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/thinq.onnx");
/// Ten pictures of Fashion-MNIST (MIT licence), one a class, 28×28 pixels.
pub const PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pictures");
pub const COUNT: usize = 10;
/// Payload bytes of a chunk.
pub const CHUNK: usize = 128;
/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Answers {
    pub code: i32,
    pub lines: Vec<serde_json::Value>,
    pub stderr: String,
}

pub fn edge_infer() -> Command {
    Command::cargo_bin("edge-infer").unwrap()
}

pub fn answers(mut command: Command) -> Answers {
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    Answers {
        code: output.status.code().unwrap(),
        lines: stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The pictures' own answers, logits included.
pub fn from_files() -> Answers {
    let mut command = edge_infer();
    command.args(["--model", MODEL, "--json", "--logits", "--image", PICTURES]);
    answers(command)
}

pub fn record(folder: &Path, arguments: &[&str], pictures: &str) -> PathBuf {
    let stream = folder.join("stream.frames");
    let mut command = edge_infer();
    command.args(["record", "--chunk", &CHUNK.to_string(), "-o"]).arg(&stream).args(arguments).arg(pictures);
    assert!(command.status().unwrap().success());
    stream
}

/// The pictures as grey frames, each its own bytes.
pub fn frames() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let stream = std::fs::read(record(folder.path(), &["--format", "gray8"], PICTURES)).unwrap();
    // 28×28 bytes are six chunks of 128 and one of 16.
    let frames: Vec<_> = stream.chunks(7 * 40 + 784).map(<[u8]>::to_vec).collect();
    assert_eq!(frames.len(), COUNT);
    frames
}

pub fn label(answer: &serde_json::Value) -> &str {
    answer["top"][0]["label"].as_str().unwrap()
}

/// A running `edge-infer`, killed when dropped.
pub struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    said: String,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Running { child, stdout, stderr, said: String::new() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of standard output, as JSON.
    pub fn answer(&mut self) -> serde_json::Value {
        match self.stdout.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")),
            Err(_) => panic!("no answer; standard error: {}", self.rest_of_stderr()),
        }
    }

    /// Waits for a line of standard error with `words` in it.
    pub fn says(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.stderr.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said += &format!("{line}\n");
                    if line.contains(words) {
                        return line;
                    }
                }
                Err(_) => panic!("it never said {words:?}: {}", self.said),
            }
        }
    }

    pub fn terminate(&self) {
        let id = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }

    /// Its exit code after SIGTERM.
    pub fn end_by_signal(self) -> i32 {
        self.terminate();
        self.end().0
    }

    /// Its exit code and all it said, once it has ended by itself.
    pub fn end(mut self) -> (i32, Vec<serde_json::Value>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("it does not end: {}", self.rest_of_stderr()),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let answers = self.stdout.iter().map(|l| serde_json::from_str(&l).unwrap()).collect();
        (status.code().unwrap_or(-1), answers, self.rest_of_stderr())
    }

    fn rest_of_stderr(&mut self) -> String {
        while let Ok(line) = self.stderr.recv_timeout(Duration::from_millis(200)) {
            self.said += &format!("{line}\n");
        }
        self.said.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || BufReader::new(from).lines().map_while(Result::ok).try_for_each(|l| send.send(l)));
    receive
}
