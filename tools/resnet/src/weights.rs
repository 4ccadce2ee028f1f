//! Weights from a safetensors file with torchvision's names.
//!
//! Only the header is read before every tensor's name, type and shape are checked; then one tensor after the other is
//! read straight into its f32 values, so that memory stays below twice the file's size.

use crate::network::Network;
use crate::{Error, Result};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Longest header that is parsed: the largest network here has about 70 KB.
const MAX_HEADER: u64 = 2 << 20;
const PICKLES: [&str; 6] = ["pth", "pt", "bin", "pkl", "ckpt", "tar"];
/// A counter that PyTorch keeps beside BatchNorm's statistics; inference does not need it.
const COUNTER: &str = ".num_batches_tracked";

/// Reads every parameter's values, in [`Network::parameters`] order. `tick` is called after each tensor.
pub fn load(path: &Path, network: &Network, mut tick: impl FnMut()) -> Result<Vec<Vec<f32>>> {
    let io = |e| Error::Infer(edge_infer::Error::io(path, e));
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let (start, metadata) = read_header(path, &mut file, length)?;
    check(path, &metadata, network)?;

    let mut problems = Vec::new();
    let mut values = Vec::new();
    for p in network.parameters() {
        let Some(info) = metadata.info(&p.name) else { continue };
        let (from, to) = info.data_offsets;
        file.seek(SeekFrom::Start(start + from as u64)).map_err(io)?;
        let mut tensor = Vec::with_capacity(p.len());
        let finite = read_values(&mut (&mut file).take((to - from) as u64), info.dtype, &mut tensor).map_err(io)?;
        if tensor.len() != p.len() {
            return Err(Error::file(path, format!("it ends within {}; copy it again", p.name)));
        }
        if !finite {
            problems.push(format!("{}: holds NaN or infinity; the training probably diverged", p.name));
        } else if p.role == crate::network::Role::Variance && tensor.iter().any(|&v| v < 0.0) {
            problems.push(format!("{}: holds a negative variance", p.name));
        }
        values.push(tensor);
        tick();
    }
    if problems.is_empty() { Ok(values) } else { Err(Error::Tensors { path: path.into(), problems }) }
}

fn read_header(path: &Path, file: &mut File, length: u64) -> Result<(u64, Metadata)> {
    let io = |e| Error::Infer(edge_infer::Error::io(path, e));
    let mut head = [0; 8];
    if length >= 8 {
        file.read_exact(&mut head).map_err(io)?;
    }
    // A zip archive or a bare pickle, whatever the file is called.
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    if head.starts_with(b"PK\x03\x04") || (head[0] == 0x80 && (2..=5).contains(&head[1]) && head[7] != 0) {
        return Err(Error::Pickle { path: path.into() });
    }
    let bytes = u64::from_le_bytes(head);
    let fits = length >= 8 && bytes <= length - 8;
    if !fits && extension.is_some_and(|e| PICKLES.contains(&e.as_str())) {
        return Err(Error::Pickle { path: path.into() });
    }
    if !fits {
        return Err(Error::file(path, "not a safetensors file, or truncated: its header does not fit it"));
    }
    if bytes > MAX_HEADER {
        return Err(Error::file(path, format!("its header has {bytes} bytes; no network here needs more than {MAX_HEADER}")));
    }
    let mut header = Vec::with_capacity(bytes as usize);
    file.take(bytes).read_to_end(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| Error::file(path, format!("its header is broken: {e}")))?;
    let expected = (bytes + 8).checked_add(metadata.data_len() as u64);
    if expected != Some(length) {
        let n = metadata.data_len();
        return Err(Error::file(path, format!("its header tells of {n} bytes of tensors, {} follow; copy it again", length - 8 - bytes)));
    }
    Ok((bytes + 8, metadata))
}

/// Compares names, types and shapes with what the network wants; reports all differences at once.
fn check(path: &Path, metadata: &Metadata, network: &Network) -> Result<()> {
    let mut given = metadata.tensors();
    let mut problems = Vec::new();
    for p in network.parameters() {
        match given.remove(&p.name) {
            None => problems.push(format!("{}: missing, shape {:?} is wanted", p.name, p.dims)),
            Some(info) => {
                if info.shape != p.dims {
                    problems.push(format!("{}: its shape is {:?}, {:?} is wanted", p.name, info.shape, p.dims));
                }
                if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                    problems.push(format!("{}: its type is {:?}; F32, F16 or BF16 is wanted", p.name, info.dtype));
                }
            }
        }
    }
    let counters: HashMap<String, ()> =
        network.parameters().filter_map(|p| Some((format!("{}{COUNTER}", p.name.strip_suffix(".running_mean")?), ()))).collect();
    let mut surplus: Vec<_> = given.into_keys().filter(|name| !counters.contains_key(name)).collect();
    surplus.sort();
    problems.extend(surplus.into_iter().map(|name| format!("{name}: surplus, {} has no such tensor", network.config.arch.name())));
    if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { path: path.into(), problems }) }
}

/// Appends a tensor's values as f32; tells whether all are finite.
fn read_values(source: &mut impl Read, dtype: Dtype, out: &mut Vec<f32>) -> std::io::Result<bool> {
    let mut chunk = vec![0; 64 << 10];
    let mut finite = true;
    loop {
        let mut filled = 0;
        while filled < chunk.len() {
            match source.read(&mut chunk[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        let from = out.len();
        match dtype {
            Dtype::F16 => out.extend(chunk[..filled].as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            Dtype::BF16 => out.extend(chunk[..filled].as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
            _ => out.extend(chunk[..filled].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
        }
        finite &= out[from..].iter().all(|v| v.is_finite());
        if filled < chunk.len() {
            return Ok(finite);
        }
    }
}
