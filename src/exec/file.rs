//! A program in a file, packed weights and all: it is mapped rather than read, so that starting costs no import, no packing
//! and no copy.
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | [`MAGIC`] |
//! | 8..12 | [`FORMAT`], u32 |
//! | 12..16 | length of the header, u32 |
//! | 16..24 | length of the file, u64 |
//! | 24..28 | CRC-32 (IEEE) of all that follows byte 32 |
//! | 32.. | header: JSON ([`Header`]) |
//! | then | arrays in the order of the steps, each at a multiple of 64 |
//!
//! Numbers are little-endian, as on every processor there are kernels for. A file serves one instruction set and one version
//! of this program; whatever it says is checked before use ([`Program::new`]).
#![allow(unsafe_code)]

use super::Program;
use super::program::Parts;
use crate::files::open_regular;
use crate::kernels::{self, ConvKernel};
use crate::metadata::Metadata;
use crate::program::StepOp;
use crate::{Error, Result};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

/// First bytes of a compiled program.
pub const MAGIC: [u8; 8] = *b"EDGEPROG";
/// Version of the layout.
const FORMAT: u32 = 5;
/// Bytes before the header.
const PRELUDE: usize = 32;
/// Alignment of every array: a cache line.
const ALIGN: usize = 64;
/// No header is longer.
const MAX_HEADER: usize = 16 << 20;

/// A model that is one program from input to output.
#[derive(Debug)]
pub struct Compiled {
    /// What runs.
    pub program: Program,
    /// What the model file said of itself.
    pub metadata: Metadata,
    /// ONNX shape of the input, batch 1.
    pub input_shape: Vec<usize>,
    /// The model file it was made from.
    pub source: Fingerprint,
}

/// Tells one model file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    bytes: u64,
    crc32: u32,
}

impl Fingerprint {
    /// Reads the file through, in small pieces.
    pub fn of(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file = open_regular(path).map_err(io)?;
        let (mut hasher, mut bytes, mut buffer) = (crc32fast::Hasher::new(), 0, vec![0; 1 << 16]);
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => return Ok(Fingerprint { bytes, crc32: hasher.finalize() }),
                n => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Header<P> {
    version: String,
    isa: String,
    source: Fingerprint,
    metadata: Metadata,
    input_shape: Vec<usize>,
    /// Bytes of each array.
    arrays: Vec<usize>,
    program: P,
}

/// Writes `compiled` to `path`, whole or not at all.
pub fn save(path: &Path, compiled: Compiled) -> Result<()> {
    let io = |e| Error::io(path, e);
    let Compiled { program, metadata, input_shape, source } = compiled;
    let mut parts = program.into_parts();
    let mut arrays = Vec::new();
    for step in &mut parts.steps {
        arrays.extend(step.blobs().iter().map(|blob| blob.bytes().len()));
    }
    let header = serde_json::to_vec(&Header {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        isa: parts.kernel.isa.to_owned(),
        source,
        metadata,
        input_shape,
        arrays,
        program: &parts,
    })
    .map_err(|e| io(e.into()))?;
    let header_len = u32::try_from(header.len()).ok().filter(|&n| n as usize <= MAX_HEADER);
    let header_len = header_len.ok_or_else(|| Error::UnsupportedModel(format!("its program's header takes {} bytes", header.len())))?;
    let mut body = header;
    for step in &mut parts.steps {
        for blob in step.blobs() {
            body.resize((PRELUDE + body.len()).next_multiple_of(ALIGN) - PRELUDE, 0);
            body.extend_from_slice(blob.bytes());
        }
    }
    let mut prelude = Vec::with_capacity(PRELUDE);
    prelude.extend(MAGIC);
    prelude.extend(FORMAT.to_le_bytes());
    prelude.extend(header_len.to_le_bytes());
    prelude.extend(((PRELUDE + body.len()) as u64).to_le_bytes());
    prelude.extend(crc32fast::hash(&body).to_le_bytes());
    prelude.resize(PRELUDE, 0);

    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    file.write_all(&prelude).and_then(|()| file.write_all(&body)).and_then(|()| file.as_file().sync_all()).map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// True if the file starts as a compiled program does.
pub fn is_compiled(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    open_regular(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == MAGIC
}

/// Maps a compiled program, checks it, and returns it ready to run.
///
/// The file must not be changed in place while it is in use; replacing it by another is safe, and what [`save`] does.
pub fn open(path: &Path) -> Result<Compiled> {
    let invalid =
        |why: String| Error::InvalidModel(format!("{}: compiled program: {why}; compile it again from the ONNX file", path.display()));
    let file = open_regular(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: nobody changes a compiled program in place (see above); a file cut short meanwhile ends the process.
    let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?);
    if map.len() < PRELUDE || map[..8] != MAGIC {
        return Err(invalid("it does not start as one".into()));
    }
    let u32_at = |at: usize| u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]);
    if u32_at(8) != FORMAT {
        return Err(invalid(format!("format {}, this version reads {FORMAT}", u32_at(8))));
    }
    let length = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    if length != map.len() as u64 {
        return Err(invalid(format!("it has {} of {length} bytes", map.len())));
    }
    let header_len = u32_at(12) as usize;
    if header_len > MAX_HEADER || header_len > map.len() - PRELUDE {
        return Err(invalid(format!("a header of {header_len} bytes does not fit")));
    }
    if crc32fast::hash(&map[PRELUDE..]) != u32_at(24) {
        return Err(invalid("its checksum is wrong: the file is damaged".into()));
    }
    let header = &map[PRELUDE..][..header_len];
    #[derive(Deserialize)]
    struct Versions {
        version: String,
        isa: String,
    }
    let versions: Versions = serde_json::from_slice(header).map_err(|e| invalid(format!("header: {e}")))?;
    if versions.version != env!("CARGO_PKG_VERSION") {
        return Err(invalid(format!("made by version {}, this is {}", versions.version, env!("CARGO_PKG_VERSION"))));
    }
    if !kernels::registry().iter().any(|k| k.isa == versions.isa && (k.supported)()) {
        return Err(invalid(format!("made for {}, which this processor lacks", versions.isa)));
    }
    let Header { source, metadata, input_shape, arrays, program: mut parts, .. } =
        serde_json::from_slice::<Header<Parts>>(header).map_err(|e| invalid(format!("header: {e}")))?;
    let mut at = PRELUDE + header_len;
    let mut arrays = arrays.into_iter();
    for step in &mut parts.steps {
        for blob in step.blobs() {
            let start = at.next_multiple_of(ALIGN);
            let end = arrays.next().and_then(|bytes| start.checked_add(bytes)).ok_or_else(|| invalid("an array is missing".into()))?;
            blob.map(&map, start..end).map_err(|e| invalid(e.to_string()))?;
            at = end;
        }
        step.addresses().into_iter().for_each(|blob| blob.copy());
    }
    let program = Program::new(parts).map_err(invalid)?;
    let whole = program.sources().len() == 1 && program.sources()[0].shape == input_shape && !program.targets().is_empty();
    if !whole || versions.isa != program.isa() {
        return Err(invalid("input, output or instruction set do not match its program".into()));
    }
    Ok(Compiled { program, metadata, input_shape, source })
}

/// Convolution kernels by the name of their instruction set.
pub(super) mod kernel_name {
    use super::*;
    use serde::{Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(kernel: &&'static ConvKernel, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(kernel.isa)
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<&'static ConvKernel, D::Error> {
        let isa = String::deserialize(d)?;
        kernels::registry().iter().find(|k| k.isa == isa).ok_or_else(|| D::Error::custom(format!("unknown instruction set {isa:?}")))
    }
}
