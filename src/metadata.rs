//! What a model file says of itself: preprocessing and labels, kept in ONNX `metadata_props`
//! so that a model needs no flags to be used.
//!
//! | key | value |
//! |---|---|
//! | `edge_infer.preprocess` | [`Preprocess`] as JSON |
//! | `edge_infer.labels` | JSON array of class names, index = class |
//! | `edge_infer.task` | [`Task`] as JSON |
//! | `edge_infer.outputs` | JSON array of the names of the outputs that are computed |

use crate::task::Task;
use serde::{Deserialize, Serialize};

/// `metadata_props` key of the preprocessing record.
pub const PREPROCESS_KEY: &str = "edge_infer.preprocess";
/// `metadata_props` key of the class names.
pub const LABELS_KEY: &str = "edge_infer.labels";
/// `metadata_props` key of what the network is for.
pub const TASK_KEY: &str = "edge_infer.task";
/// `metadata_props` key of the outputs that are computed.
pub const OUTPUTS_KEY: &str = "edge_infer.outputs";

/// How a picture becomes the network's input tensor (1×C×H×W, f32):
/// decode → resize → centre crop or margin → `(value / 255 − mean) / std` per channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Width of the network's input, pixels.
    pub width: u32,
    /// Height of the network's input, pixels.
    pub height: u32,
    /// What happens before the crop.
    pub resize: Resize,
    /// Order of the channels in the tensor.
    pub color: Color,
    /// Subtracted after the division by 255, one per channel.
    pub mean: Vec<f32>,
    /// Divides last, one per channel.
    pub std: Vec<f32>,
    /// Pictures are taken as they are stored, whatever turn their EXIF data asks for, as torchvision's ImageFolder does.
    /// A record without it means that pictures are turned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_exif: bool,
}

/// How a picture reaches the network's size. Bilinear, antialiased when it shrinks (as Pillow and torchvision do).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Stretch to exactly width × height.
    Stretch,
    /// Scale the shorter side to this many pixels, then crop width × height from the centre.
    ShortSide(u32),
    /// Scale to fit into width × height, and fill the rest: detectors see the whole picture in its proportions.
    Letterbox {
        /// Value of the margin's bytes; YOLO's tools take 114.
        #[serde(default = "grey")]
        fill: u8,
        /// The picture lies in the upper left corner (YOLOX), not in the middle.
        #[serde(default)]
        corner: bool,
    },
}

fn grey() -> u8 {
    114
}

/// Channel order of the input tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel of luma.
    Gray,
}

impl Color {
    /// Number of channels in the tensor.
    pub fn channels(self) -> usize {
        match self {
            Color::Rgb | Color::Bgr => 3,
            Color::Gray => 1,
        }
    }
}

/// What a model file carries beside its graph.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Metadata {
    /// How to prepare pictures, where the file says.
    pub preprocess: Option<Preprocess>,
    /// Class names, empty where the file has none.
    pub labels: Vec<String>,
    /// What the network is for, where the file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// Names of the outputs that are computed; empty: those that the task needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
}
