//! What the integration tests share: golden files, Python.
#![allow(dead_code)] // each test binary uses its part

use edge_infer::model::{LoadOptions, Model};
use std::path::{Path, PathBuf};
use std::process::Command;

/// SplitMix64: reproducible values from a seed.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// 0..n
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// lo..=hi
    pub fn between(&mut self, lo: usize, hi: usize) -> usize {
        lo + self.below(hi - lo + 1)
    }
    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
    /// lo..hi
    pub fn real(&mut self, lo: f32, hi: f32) -> f32 {
        lo + (hi - lo) * (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// `tests/` of this package.
pub fn tests_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Raw little-endian floats.
pub fn read_f32(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(bytes.len().is_multiple_of(4), "{}", path.display());
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Raw little-endian floats.
pub fn write_f32(path: &Path, values: &[f32]) {
    std::fs::write(path, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
}

/// Path of a golden model.
pub fn golden(name: &str) -> PathBuf {
    tests_folder().join(format!("golden/{name}.onnx"))
}

pub fn load(path: &Path, isa: Option<&str>, threads: usize) -> Model {
    let options = LoadOptions { threads, isa: isa.map(String::from), ..Default::default() };
    Model::load(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Names of the instruction sets this processor has.
pub fn isas() -> Vec<&'static str> {
    let mut names: Vec<_> = edge_infer::kernels::registry().iter().filter(|k| (k.supported)()).map(|k| k.isa).collect();
    names.dedup();
    names
}

/// Index of the largest value, the first of equals.
pub fn argmax(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// A Python that can import `modules`: `EDGE_PYTHON`, the one `tools/test` installs, or `python3`.
/// Without one the test is skipped with a message, or fails if `EDGE_REQUIRE_PYTHON=1`.
pub fn python(modules: &str) -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python3");
    let candidates = [std::env::var_os("EDGE_PYTHON").map(PathBuf::from), Some(venv), Some("python3".into())];
    let mut reasons = Vec::new();
    for python in candidates.into_iter().flatten() {
        match Command::new(&python).args(["-c", &format!("import {modules}")]).output() {
            Ok(out) if out.status.success() => return Some(python),
            Ok(out) => {
                let text = String::from_utf8_lossy(&out.stderr);
                reasons.push(format!("{}: {}", python.display(), text.lines().last().unwrap_or("it failed")));
            }
            Err(e) => reasons.push(format!("{}: {e}", python.display())),
        }
    }
    let reason = format!("no Python with {modules} ({}); `tools/test` installs one under target/venv", reasons.join("; "));
    assert!(std::env::var("EDGE_REQUIRE_PYTHON").as_deref() != Ok("1"), "{reason}");
    // Straight to the terminal: the harness shows captured output of failed tests only.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
    None
}

/// Runs a script of `tests/` and returns what it prints.
pub fn run_python(python: &Path, script: &str, args: &[&std::ffi::OsStr]) -> String {
    let out = Command::new(python).arg(tests_folder().join(script)).args(args).output().unwrap();
    assert!(out.status.success(), "{script} failed:\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
