//! `edge-infer` on the stream, and on the same pictures from files.

use crate::board::Frame;
use crate::{Error, ensure};
use edge_wire::PixelFormat;
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub struct Labels {
    program: PathBuf,
    model: PathBuf,
    folder: PathBuf,
    process: Child,
    /// Of every frame that the process is fed: the file with the same picture, where it is to be compared.
    frames: Vec<Option<PathBuf>>,
}

impl Labels {
    pub fn start(program: &Path, model: &Path, folder: &Path) -> Result<Self, Error> {
        let folder = folder.join("pictures");
        std::fs::create_dir(&folder)?;
        let process = Command::new(program)
            .arg("--model")
            .arg(model)
            .args(["--frames", "-", "--json", "--logits"])
            .stdin(Stdio::piped())
            .stdout(File::create(folder.with_extension("json"))?)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        Ok(Labels { program: program.into(), model: model.into(), folder, process, frames: Vec::new() })
    }

    /// Frames to compare.
    pub fn expected(&self) -> usize {
        self.frames.iter().flatten().count()
    }

    /// The next frame will be compared with a file of its picture.
    pub fn expect(&mut self, frame: &Frame) -> Result<(), Error> {
        let (width, height) = (frame.info.width, frame.info.height);
        let (extension, bytes) = match frame.info.format {
            PixelFormat::Jpeg => ("jpg", frame.payload.clone()),
            PixelFormat::Gray8 => ("pgm", [format!("P5 {width} {height} 255\n").as_bytes(), &frame.payload].concat()),
            _ => {
                // Five and six bits widened so that white is white.
                let wide = frame.payload.chunks(2).map(|b| u16::from_be_bytes([b[0], b[1]]));
                let wide = wide.flat_map(|v| [(v >> 11) << 3 | v >> 13, (v >> 5 & 63) << 2 | (v >> 9 & 3), (v & 31) << 3 | (v >> 2 & 7)]);
                ("ppm", format!("P6 {width} {height} 255\n").bytes().chain(wide.map(|v| v as u8)).collect())
            }
        };
        let file = self.folder.join(format!("{:04}.{extension}", self.frames.len()));
        std::fs::write(&file, bytes)?;
        self.frames.push(Some(file));
        Ok(())
    }

    /// The next frame need not be compared.
    pub fn skip(&mut self) {
        self.frames.push(None);
    }

    /// Bytes of the link.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let stdin = self.process.stdin.as_mut().ok_or("edge-infer has ended")?;
        Ok(stdin.write_all(bytes)?)
    }

    /// Compares all; gives how many.
    pub fn finish(&mut self, folder: &Path) -> Result<usize, Error> {
        drop(self.process.stdin.take());
        ensure!(self.process.wait()?.success(), "edge-infer failed on the stream");
        let streamed = lines(&std::fs::read_to_string(folder.join("pictures.json"))?)?;
        ensure!(streamed.len() == self.frames.len(), "edge-infer labelled {} frames, {} were received", streamed.len(), self.frames.len());
        let files: Vec<&PathBuf> = self.frames.iter().flatten().collect();
        let output =
            Command::new(&self.program).arg("--model").arg(&self.model).args(["--json", "--logits", "--image"]).args(&files).output()?;
        ensure!(output.status.success(), "edge-infer failed on the pictures: {}", String::from_utf8_lossy(&output.stderr));
        let direct = lines(&String::from_utf8(output.stdout)?)?;
        ensure!(direct.len() == files.len(), "edge-infer labelled {} of {} pictures", direct.len(), files.len());
        let compared = streamed.iter().zip(&self.frames).filter_map(|(line, file)| file.as_ref().map(|file| (line, file)));
        for ((stream, file), picture) in compared.zip(&direct) {
            for key in ["top", "logits"] {
                ensure!(!picture[key].is_null(), "edge-infer's output has no {key}");
                ensure!(
                    stream[key] == picture[key],
                    "{}: {key} {} from the stream, {} from the file",
                    file.display(),
                    stream[key],
                    picture[key]
                );
            }
        }
        Ok(direct.len())
    }
}

impl Drop for Labels {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lines(text: &str) -> Result<Vec<Value>, Error> {
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}
