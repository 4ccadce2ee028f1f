//! Tensors whose data lies in files beside the model (ONNX "external data"), read into the model.

use super::onnx::{MAX_MODEL_BYTES, ModelProto, TensorProto};
use crate::files::{READ, regular};
use crate::{Error, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
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
        let opened = open_beneath(folder, Path::new(location)).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (length, file) =
            opened.map_err(|e| fail(format!("its data is in {}: {e}; keep that file beside the model", path.display())))?;
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

/// Opens a regular file in `folder` or below, that a model named: no link leads out of the folder.
fn open_beneath(folder: &Path, location: &Path) -> io::Result<File> {
    let folder = rustix::fs::openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::openat2(&folder, location, READ, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
        // Linux before 5.6, or a sandbox that does not know the call: without links there is no way out either.
        Err(Errno::NOSYS | Errno::PERM) => walk_beneath(folder, location),
        Err(Errno::XDEV) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "a link leads out of the model's folder")),
        opened => regular(opened?),
    }
}

/// Opens a regular file below a folder, following no link. `location` has no `..`.
fn walk_beneath(mut folder: OwnedFd, location: &Path) -> io::Result<File> {
    let mut components = location.components().filter(|c| matches!(c, Component::Normal(_))).peekable();
    while let Some(component) = components.next() {
        if components.peek().is_none() {
            return regular(rustix::fs::openat(&folder, component.as_os_str(), READ | OFlags::NOFOLLOW, Mode::empty())?);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        folder = rustix::fs::openat(&folder, component.as_os_str(), flags, Mode::empty())?;
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::open_regular;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_below_the_folder_are_opened() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"secret").unwrap();
        let folder = outside.path().join("model");
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::fs::write(folder.join("data/weights"), b"weights").unwrap();
        symlink("data/weights", folder.join("inside")).unwrap();
        symlink("../secret", folder.join("outside")).unwrap();
        symlink(outside.path().join("secret"), folder.join("absolute")).unwrap();
        symlink("..", folder.join("up")).unwrap();
        rustix::fs::mknodat(CWD, folder.join("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let content = |file: io::Result<File>| {
            let mut text = String::new();
            file.and_then(|mut f| f.read_to_string(&mut text)).map(|_| text).map_err(|e| e.to_string())
        };
        let beneath = |name: &str| content(open_beneath(&folder, Path::new(name)));
        let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let walked = |name: &str| content(walk_beneath(open(&folder), Path::new(name)));
        assert_eq!(beneath("data/weights").unwrap(), "weights");
        assert_eq!(walked("./data/weights").unwrap(), "weights");
        assert_eq!(beneath("inside").unwrap(), "weights");
        for name in ["outside", "absolute", "up/secret"] {
            assert!(beneath(name).unwrap_err().contains("out of the model's folder"), "{name}: {:?}", beneath(name));
            assert!(walked(name).is_err());
        }
        for name in ["fifo", "data", "missing", "/etc/passwd"] {
            assert!(beneath(name).is_err(), "{name}");
        }
        assert!(walked("fifo").is_err() && walked(".").is_err());
        assert!(open_regular(&folder.join("fifo")).unwrap_err().to_string().contains("regular"));
        // What the user names may be a link.
        assert_eq!(content(open_regular(&folder.join("outside"))).unwrap(), "secret");
    }
}
