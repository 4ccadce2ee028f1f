//! Calibration inputs: pictures, folders of them, and `.npy`/`.npz` tensors (N×C×H×W, f32).

use crate::{Error, Result};
use edge_infer::image;
use edge_infer::metadata::Preprocess;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Most elements of one tensor file (16 GiB of f32).
const MAX_ELEMENTS: u64 = 1 << 32;

/// A list of inputs, each read when it is asked for.
pub struct Inputs {
    items: Vec<Item>,
    shape: Vec<usize>,
    preprocess: Option<Preprocess>,
}

enum Item {
    Picture(PathBuf),
    /// Row of a tensor file, at this byte offset.
    Row(std::sync::Arc<Mutex<File>>, PathBuf, u64),
}

impl Inputs {
    /// Collects inputs for a network input of `shape` (1×C×H×W).
    pub fn collect(paths: &[PathBuf], shape: &[usize], preprocess: Option<Preprocess>) -> Result<Self> {
        let mut items = Vec::new();
        for path in paths {
            match path.extension().and_then(|e| e.to_str()) {
                Some("npy") => {
                    let file = File::open(path).map_err(|e| Error::io(path, e))?;
                    items.extend(rows_of_npy(path, file, shape)?);
                }
                Some("npz") => items.extend(rows_of_npz(path, shape)?),
                _ => items.extend(image::collect(std::slice::from_ref(path))?.into_iter().map(Item::Picture)),
            }
        }
        if items.is_empty() {
            return Err(Error::Usage("no calibration images found; give --calib a folder of pictures".into()));
        }
        let pictures = items.iter().any(|i| matches!(i, Item::Picture(_)));
        if let (true, Some(p)) = (pictures, &preprocess) {
            let made = [1, p.color.channels(), p.height as usize, p.width as usize];
            if made != shape {
                return Err(Error::Usage(format!("pictures become {made:?}, the model wants {shape:?}; set --size and --color")));
            }
        }
        Ok(Self { items, shape: shape.to_vec(), preprocess })
    }

    /// Number of inputs.
    pub fn len(&self) -> usize {
        self.items.len()
    }
    /// Never true for collected inputs.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Keeps `count` inputs, evenly spaced, so that sorted class folders all stay represented.
    pub fn thin(&mut self, count: usize) {
        let total = self.items.len();
        if count < total {
            let mut n = 0;
            self.items.retain(|_| {
                let keep = (n + 1) * count / total > n * count / total;
                n += 1;
                keep
            });
        }
    }

    /// What one input is called: its file, and the byte offset within a file of tensors.
    pub fn name(&self, index: usize) -> String {
        match &self.items[index] {
            Item::Picture(path) => path.display().to_string(),
            Item::Row(_, path, offset) => format!("{} at byte {offset}", path.display()),
        }
    }

    /// One input, C×H×W values.
    pub fn load(&self, index: usize) -> Result<Vec<f32>> {
        let count: usize = self.shape.iter().product();
        let values = match &self.items[index] {
            Item::Picture(path) => {
                let preprocess = self.preprocess.as_ref().ok_or_else(|| Error::Usage("pictures need preprocessing settings".into()))?;
                image::load_tensor(path, preprocess)?
            }
            Item::Row(file, path, offset) => {
                let mut bytes = vec![0; count * 4];
                let mut file = file.lock().unwrap_or_else(|e| e.into_inner());
                file.seek(SeekFrom::Start(*offset)).map_err(|e| Error::io(path, e))?;
                file.read_exact(&mut bytes).map_err(|e| Error::io(path, e))?;
                bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
        };
        if values.len() != count || values.iter().any(|v| !v.is_finite()) {
            let path = match &self.items[index] {
                Item::Picture(p) | Item::Row(_, p, _) => p,
            };
            return Err(Error::image(path, "it holds NaN or infinity, or too few values"));
        }
        Ok(values)
    }
}

fn rows(path: &Path, file: File, start: u64, dims: &[u64], shape: &[usize]) -> Result<Vec<Item>> {
    let one: Vec<u64> = shape[1..].iter().map(|&d| d as u64).collect();
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_ELEMENTS);
    if dims.len() != shape.len() || dims[1..] != one[..] || elements.is_none() {
        return Err(Error::image(path, format!("its shape is {dims:?}, the model wants N×{one:?}")));
    }
    let row = 4 * one.iter().product::<u64>();
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if length < start + row * dims[0] {
        return Err(Error::image(path, "the file is truncated"));
    }
    let file = std::sync::Arc::new(Mutex::new(file));
    Ok((0..dims[0]).map(|i| Item::Row(file.clone(), path.to_owned(), start + i * row)).collect())
}

fn check_header(path: &Path, header: &npyz::NpyHeader) -> Result<()> {
    let f32_le = header.dtype().descr().contains("<f4");
    if f32_le && header.order() == npyz::Order::C {
        Ok(())
    } else {
        Err(Error::image(path, "little-endian float32 in C order expected: np.ascontiguousarray(x, np.float32)"))
    }
}

fn rows_of_npy(path: &Path, mut file: File, shape: &[usize]) -> Result<Vec<Item>> {
    let header = npyz::NpyHeader::from_reader(&mut file).map_err(|e| Error::io(path, e))?;
    check_header(path, &header)?;
    let start = file.stream_position().map_err(|e| Error::io(path, e))?;
    rows(path, file, start, header.shape(), shape)
}

/// Arrays of an archive are decompressed into an unnamed temporary file.
fn rows_of_npz(path: &Path, shape: &[usize]) -> Result<Vec<Item>> {
    let io = |e| Error::io(path, e);
    let mut archive = npyz::npz::NpzArchive::new(BufReader::new(File::open(path).map_err(io)?)).map_err(io)?;
    let names: Vec<String> = archive.array_names().map(String::from).collect();
    let mut items = Vec::new();
    for name in names {
        let Some(array) = archive.by_name(&name).map_err(io)? else {
            continue;
        };
        check_header(path, array.header())?;
        let dims = array.shape().to_vec();
        if dims.len() != shape.len() || array.len() > MAX_ELEMENTS {
            continue; // labels and the like
        }
        let mut file = tempfile::tempfile().map_err(io)?;
        let mut writer = std::io::BufWriter::new(&mut file);
        let data = array.data::<f32>().map_err(|e| Error::image(path, e.to_string()))?;
        for value in data {
            writer.write_all(&value.map_err(io)?.to_le_bytes()).map_err(io)?;
        }
        writer.flush().map_err(io)?;
        drop(writer);
        items.extend(rows(path, file, 0, &dims, shape)?);
    }
    Ok(items)
}
