//! Names of the architectures, their options, and torchvision's rules about both.

use crate::{Error, Result};
use clap::ValueEnum;
use serde::Serialize;

/// The two kinds of residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Two 3×3 convolutions.
    Basic,
    /// 1×1, 3×3, 1×1 convolutions; the last widens fourfold.
    Bottleneck,
}

impl Block {
    /// Output channels per plane.
    pub fn expansion(self) -> usize {
        match self {
            Block::Basic => 1,
            Block::Bottleneck => 4,
        }
    }
}

/// An architecture by its torchvision name, or `plainN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Arch {
    Resnet18,
    Resnet34,
    Resnet50,
    Resnet101,
    Resnet152,
    #[value(name = "resnext50_32x4d")]
    #[serde(rename = "resnext50_32x4d")]
    Resnext50_32x4d,
    #[value(name = "resnext101_32x8d")]
    #[serde(rename = "resnext101_32x8d")]
    Resnext101_32x8d,
    #[value(name = "resnext101_64x4d")]
    #[serde(rename = "resnext101_64x4d")]
    Resnext101_64x4d,
    #[value(name = "wide_resnet50_2")]
    #[serde(rename = "wide_resnet50_2")]
    WideResnet50_2,
    #[value(name = "wide_resnet101_2")]
    #[serde(rename = "wide_resnet101_2")]
    WideResnet101_2,
    Plain18,
    Plain34,
    Plain50,
    Plain101,
    Plain152,
}

impl Arch {
    /// Block kind and blocks per stage.
    pub fn layers(self) -> (Block, [usize; 4]) {
        use Arch::*;
        match self {
            Resnet18 | Plain18 => (Block::Basic, [2, 2, 2, 2]),
            Resnet34 | Plain34 => (Block::Basic, [3, 4, 6, 3]),
            Resnet50 | Resnext50_32x4d | WideResnet50_2 | Plain50 => (Block::Bottleneck, [3, 4, 6, 3]),
            Resnet101 | Resnext101_32x8d | Resnext101_64x4d | WideResnet101_2 | Plain101 => (Block::Bottleneck, [3, 4, 23, 3]),
            Resnet152 | Plain152 => (Block::Bottleneck, [3, 8, 36, 3]),
        }
    }

    /// No BatchNorm, biased convolutions, each followed by ReLU.
    pub fn is_plain(self) -> bool {
        matches!(self, Arch::Plain18 | Arch::Plain34 | Arch::Plain50 | Arch::Plain101 | Arch::Plain152)
    }

    /// Groups and width per group that the name itself promises.
    fn promised(self) -> (Option<usize>, Option<usize>) {
        match self {
            Arch::Resnext50_32x4d => (Some(32), Some(4)),
            Arch::Resnext101_32x8d => (Some(32), Some(8)),
            Arch::Resnext101_64x4d => (Some(64), Some(4)),
            Arch::WideResnet50_2 | Arch::WideResnet101_2 => (None, Some(128)),
            _ => (None, None),
        }
    }

    /// As users write it.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
    }
}

/// What a user may ask of an architecture; `None` is its own default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Classes, 1000 by default.
    pub num_classes: Option<usize>,
    /// Groups of the bottleneck's 3×3 convolution.
    pub groups: Option<usize>,
    /// Its channels per group, for 64 planes.
    pub width_per_group: Option<usize>,
    /// For stages 2 to 4: dilate instead of striding. Three elements.
    pub replace_stride_with_dilation: Option<Vec<bool>>,
    /// Planes of the first stage, 64 by default; smaller ones give thin variants for tests.
    pub width: Option<usize>,
    /// Side of the square input picture, 224 by default.
    pub size: Option<usize>,
}

/// A validated architecture with its options.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The architecture.
    pub arch: Arch,
    /// Block kind.
    pub block: Block,
    /// Blocks per stage.
    pub layers: [usize; 4],
    /// Classes.
    pub num_classes: usize,
    /// Groups of the bottleneck's 3×3 convolution.
    pub groups: usize,
    /// Its channels per group, for 64 planes.
    pub width_per_group: usize,
    /// Stages 2 to 4 that dilate.
    pub dilate: [bool; 3],
    /// Planes of the first stage.
    pub width: usize,
    /// Side of the input picture.
    pub size: usize,
}

/// Limits of the options: no product of them overflows, none asks for absurd memory before the total is known.
const MAX_CLASSES: usize = 1 << 20;
const MAX_GROUPING: usize = 1024;
const MAX_WIDTH: usize = 4096;
const MAX_SIZE: usize = 4096;

impl Config {
    /// Applies torchvision's rules. What only some blocks forbid is checked where blocks are made
    /// ([`crate::network::Network::new`]), so that the conditions are torchvision's.
    pub fn new(arch: Arch, options: &Options) -> Result<Config> {
        let (block, layers) = arch.layers();
        let (promised_groups, promised_width) = arch.promised();
        let one = |name: &str, asked: Option<usize>, promised: Option<usize>, default: usize, max: usize| match (asked, promised) {
            (Some(a), Some(p)) if a != p => Err(Error::Usage(format!(
                "{} means --{name} {p}, but {a} is given; take resnet50 or resnet101 for another one",
                arch.name()
            ))),
            (Some(a), _) if !(1..=max).contains(&a) => Err(Error::Usage(format!("--{name} {a} is outside 1..={max}"))),
            (a, p) => Ok(a.or(p).unwrap_or(default)),
        };
        let dilate = match options.replace_stride_with_dilation.as_deref() {
            None => [false; 3],
            Some(&[a, b, c]) => [a, b, c],
            Some(other) => {
                return Err(Error::Usage(format!(
                    "--replace-stride-with-dilation wants 3 elements, one for each of stages 2 to 4, not {}",
                    other.len()
                )));
            }
        };
        let config = Config {
            arch,
            block,
            layers,
            num_classes: one("num-classes", options.num_classes, None, 1000, MAX_CLASSES)?,
            groups: one("groups", options.groups, promised_groups, 1, MAX_GROUPING)?,
            width_per_group: one("width-per-group", options.width_per_group, promised_width, 64, MAX_GROUPING)?,
            dilate,
            width: one("width", options.width, None, 64, MAX_WIDTH)?,
            size: one("size", options.size, None, 224, MAX_SIZE)?,
        };
        if arch.is_plain() && (config.groups != 1 || config.width_per_group != 64 || config.dilate != [false; 3]) {
            return Err(Error::Usage(format!("{} has no groups, group width or dilation; take a resnet", arch.name())));
        }
        Ok(config)
    }
}
