//! Compiled programs: the same results as the model they come from, and no harm from a file that is stale, damaged or hostile.

use edge_infer::model::{LoadOptions, Model, compile};
use edge_infer::{Error, exec};
use std::path::{Path, PathBuf};

const PRELUDE: usize = 32;

fn options() -> LoadOptions {
    LoadOptions { threads: 1, ..Default::default() }
}

/// A copy of the small model in a folder of its own, and its program beside it.
fn compiled() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (model, program) = (folder.path().join("thinq.onnx"), folder.path().join("thinq.edge"));
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/thinq.onnx"), &model).unwrap();
    compile(&model, &program, &options()).unwrap();
    (folder, model, program)
}

fn input(model: &Model) -> Vec<f32> {
    (0..model.input_shape().iter().product()).map(|i: usize| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 4.0).collect()
}

/// The file with the checksum that its content would have.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = bytes.len() as u64;
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    let crc = crc32fast::hash(&bytes[PRELUDE..]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn equals_the_model_it_comes_from() {
    let (_folder, model, program) = compiled();
    let alone = model.with_file_name("alone.onnx");
    std::fs::copy(&model, &alone).unwrap();
    let mut reference = Model::load(&alone, &options()).unwrap();
    let x = input(&reference);
    let expected = reference.run(&x).unwrap().to_vec();
    // Beside the model it is used, and by itself too.
    for path in [&program, &model] {
        let mut model = Model::load(path, &options()).unwrap();
        assert_eq!(model.metadata(), reference.metadata());
        assert_eq!(model.run(&x).unwrap(), expected);
        let (report, other) = (model.report(), reference.report());
        assert_eq!((report.nodes.len(), report.int8_macs), (other.nodes.len(), other.int8_macs));
    }
    assert!(compile(&program, &alone.with_extension("edge"), &options()).is_err());
}

#[test]
fn a_stale_or_damaged_program_beside_a_model_is_ignored() {
    let (_folder, model, program) = compiled();
    let x = input(&Model::load(&model, &options()).unwrap());
    let expected = Model::load(&model, &options()).unwrap().run(&x).unwrap().to_vec();
    // Trailing metadata changes the file, not the network: the program no longer belongs to it.
    let mut bytes = std::fs::read(&model).unwrap();
    bytes.extend([0x72, 0x04, 0x0a, 0x00, 0x12, 0x00]);
    std::fs::write(&model, &bytes).unwrap();
    assert_ne!(exec::open(&program).unwrap().source, exec::Fingerprint::of(&model).unwrap());
    assert_eq!(Model::load(&model, &options()).unwrap().run(&x).unwrap(), expected);
    let damaged = std::fs::read(&program).unwrap();
    std::fs::write(&program, &damaged[..damaged.len() / 2]).unwrap();
    assert_eq!(Model::load(&model, &options()).unwrap().run(&x).unwrap(), expected);
    assert!(matches!(Model::load(&program, &options()), Err(Error::InvalidModel(_))));
}

#[test]
fn other_instruction_sets_are_refused_by_name() {
    let (_folder, _, program) = compiled();
    let scalar = LoadOptions { isa: Some("scalar".into()), ..options() };
    let message = Model::load(&program, &scalar).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("scalar"), "{message}");
}

#[test]
fn truncated_and_flipped_files_are_errors() {
    let (folder, _, program) = compiled();
    let bytes = std::fs::read(&program).unwrap();
    let broken = folder.path().join("broken.edge");
    for cut in (0..bytes.len()).step_by(bytes.len() / 97).chain([7, 8, 31, 32, bytes.len() - 1]) {
        std::fs::write(&broken, &bytes[..cut]).unwrap();
        assert!(exec::open(&broken).is_err(), "cut to {cut} bytes");
    }
    for bit in (0..28 * 8).chain((0..200).map(|i| (PRELUDE * 8) + i * (bytes.len() - PRELUDE) * 8 / 200)) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&broken, &flipped).unwrap();
        assert!(exec::open(&broken).is_err(), "bit {bit}");
    }
}

/// Whoever can write the file can also write its checksum: numbers of the header become others, and whatever still opens must
/// run inside its memory.
#[test]
fn hostile_headers_do_no_harm() {
    let (folder, _, program) = compiled();
    let bytes = std::fs::read(&program).unwrap();
    let header_len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let header = &bytes[PRELUDE..PRELUDE + header_len];
    let digits: Vec<usize> = (0..header.len())
        .filter(|&i| header[i].is_ascii_digit() && !header[i - 1].is_ascii_digit() && matches!(header[i - 1], b':' | b'[' | b','))
        .collect();
    // Some kernels gather inputs, and this processor's may not.
    const GATHERS: &str = "\"gather\":null";
    let gathers: Vec<usize> = std::str::from_utf8(header).unwrap().match_indices(GATHERS).map(|(at, _)| at).collect();
    let hostile = folder.path().join("hostile.edge");
    let (mut refused, mut state) = (0, 1u64);
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    const ROUNDS: usize = 1500;
    let others = ["0", "1", "3", "7", "16", "64", "255", "4096", "32768", "1073741824", "4294967295", "18446744073709551615"];
    for round in 0..ROUNDS {
        let mut other = || others[random() % others.len()].to_owned();
        let (start, end, new) = if round % 3 == 0 && !gathers.is_empty() {
            let gather = format!("\"gather\":{{\"pieces\":[{},{}],\"len\":{},\"row\":{}}}", other(), other(), other(), other());
            let start = gathers[random() % gathers.len()];
            (start, start + GATHERS.len(), gather)
        } else {
            let new = other();
            let start = digits[random() % digits.len()];
            (start, start + header[start..].iter().take_while(|b| b.is_ascii_digit()).count(), new)
        };
        let mut changed = bytes[..PRELUDE + start].to_vec();
        changed.extend(new.bytes());
        changed.extend(&header[end..]);
        let length = (changed.len() - PRELUDE) as u32;
        changed[12..16].copy_from_slice(&length.to_le_bytes());
        // Arrays stay where the changed header's length puts them.
        changed.resize(changed.len().next_multiple_of(64), 0);
        changed.extend(&bytes[(PRELUDE + header_len).next_multiple_of(64)..]);
        std::fs::write(&hostile, sealed(changed)).unwrap();
        match Model::load(&hostile, &options()) {
            Ok(mut model) if model.input_shape().iter().product::<usize>() < 1 << 20 => {
                let x = input(&model);
                model.run(&x).unwrap();
            }
            Ok(_) => {}
            Err(_) => refused += 1,
        }
    }
    assert!(refused > ROUNDS / 4, "only {refused} of {ROUNDS} refused");
}

#[test]
fn the_command_writes_a_program_that_answers_as_the_model_does() {
    let edge_infer = || assert_cmd::Command::cargo_bin("edge-infer").unwrap();
    let (folder, model, program) = compiled();
    std::fs::remove_file(&program).unwrap();
    let x = input(&Model::load(&model, &options()).unwrap());
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(folder.path().join("x.f32"), bytes).unwrap();
    let tensor = |model: &str, output: &str| {
        edge_infer().current_dir(&folder).args(["tensor", "--input", "x.f32", "--model", model, "--output", output]).assert().success();
        std::fs::read(folder.path().join(output)).unwrap()
    };
    let expected = tensor("thinq.onnx", "a.f32");
    edge_infer().arg("compile").arg(&model).assert().success();
    assert_eq!(tensor("thinq.edge", "b.f32"), expected);
    edge_infer().args(["compile", "--low-memory", "-o"]).arg(folder.path().join("low.edge")).arg(&model).assert().success();
    assert_eq!(tensor("low.edge", "c.f32"), expected);
    // On most processors the other one holds such weights.
    let low = std::fs::read(folder.path().join("low.edge")).unwrap();
    assert!(!low.windows(8).any(|w| w == b"winograd") && low.len() as u64 <= std::fs::metadata(&program).unwrap().len());
    // Neither over the model, nor from a program, nor for processors that do not exist.
    edge_infer().arg("compile").arg(&model).arg("-o").arg(&model).assert().code(2);
    edge_infer().arg("compile").arg(&program).arg("-o").arg(folder.path().join("c.edge")).assert().code(2);
    edge_infer().args(["compile", "--cpus", "nine"]).arg(&model).assert().code(2);
    assert!(!folder.path().join("c.edge").exists());
}
