//! Tensors whose data lies in files beside the model (ONNX "external data"), read into the model.

use super::onnx::{MAX_MODEL_BYTES, ModelProto, TensorProto};
use crate::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};
use tract_onnx::pb::tensor_proto::DataLocation;

/// Bytes that tensors may read beyond the size of their files.
const SHARED_BYTES: u64 = 32 << 20;

/// Reads the data of every initializer and node attribute that names a file in `folder`.
pub fn embed(model: &mut ModelProto, folder: &Path) -> Result<()> {
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let attributes = graph.node.iter_mut().flat_map(|n| &mut n.attribute).flat_map(|a| a.t.iter_mut());
    let mut files: HashMap<String, (File, u64)> = HashMap::new();
    let mut total = 0u64;
    for tensor in graph.initializer.iter_mut().chain(attributes) {
        if tensor.data_location == Some(DataLocation::External as i32) {
            total = total.saturating_add(read(tensor, folder, &mut files)?);
            // Tensors may share bytes, but not so that memory grows far beyond the files.
            let limit = files.values().map(|f| f.1).fold(SHARED_BYTES, u64::saturating_add).min(MAX_MODEL_BYTES);
            if total > limit {
                return Err(Error::InvalidModel(format!("its external data exceed the limit of {limit} bytes; tensors overlap")));
            }
        }
    }
    Ok(())
}

/// Reads one tensor; returns its size in bytes.
fn read(tensor: &mut TensorProto, folder: &Path, files: &mut HashMap<String, (File, u64)>) -> Result<u64> {
    let fail = |reason: String| Error::tensor(&tensor.name, reason);
    let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    let number = |key: &str| {
        let parsed = entry(key).map(str::parse::<u64>).transpose();
        parsed.map_err(|_| fail(format!("external data: {key} is not a number")))
    };
    let location = entry("location").ok_or_else(|| fail("external data: no file is named".into()))?;
    // A model must not make us read files elsewhere (ONNX: relative to the model, without "..").
    if location.is_empty() || Path::new(location).components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(fail(format!("external data: `{location}` is not a file below the model's folder")));
    }
    if !files.contains_key(location) {
        let path = folder.join(location);
        let missing = |e: std::io::Error| fail(format!("its data is in {}: {e}; keep that file beside the model", path.display()));
        let file = File::open(&path).map_err(missing)?;
        let length = file.metadata().map_err(missing)?.len();
        files.insert(location.to_owned(), (file, length));
    }
    let Some((file, size)) = files.get_mut(location) else { return Err(fail("its file vanished".into())) };
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let rest = size.checked_sub(offset);
    let length = length.or(rest).unwrap_or(0);
    if rest.is_none_or(|rest| length > rest) || length > MAX_MODEL_BYTES {
        return Err(fail(format!("external data: `{location}` has {size} bytes, {length} from {offset} are wanted; copy it again")));
    }
    let mut data = vec![0; length as usize];
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut data)).map_err(|e| Error::io(folder.join(location), e))?;
    tensor.raw_data = data;
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(length)
}
