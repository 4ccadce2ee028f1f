//! What can be chosen when a model is quantized, and the recipes that choose it.

use crate::observe::Calibrator;
use crate::plan::Residual;
use crate::rounding::Rounding;
use crate::scheme::{ActivationType, WeightRange};
use serde::Serialize;

/// Choices of one quantization.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// How activation ranges are chosen.
    pub calibrator: Calibrator,
    /// Integer type of activations.
    pub activations: ActivationType,
    /// Form of residual sums.
    pub residual: Residual,
    /// How weight ranges are chosen.
    pub weights: WeightRange,
    /// How weights become integers.
    pub rounding: Rounding,
    /// Biases take up the mean errors of rounded weights and of the logits.
    pub bias_correction: bool,
    /// Channels are brought to like ranges first.
    pub equalize: bool,
    /// Nodes that stay float, by name or output.
    pub keep_float: Vec<String>,
}

/// A ready choice of calibrator and corrections; measured in `models/README.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// Smallest and largest value; every input runs once.
    Fast,
    /// Ranges of least squared error; every input runs twice.
    Balanced,
    /// As balanced, with equalized channels, compensated rounding of weights, and corrected biases; several times slower.
    Best,
}

impl Recipe {
    /// Its choices.
    pub fn options(self) -> Options {
        Options {
            calibrator: if self == Recipe::Fast { Calibrator::Minmax } else { Calibrator::Mse },
            activations: ActivationType::Uint8,
            residual: Residual::Fused,
            // Narrower weight ranges cost more at the large weights than they gain at the small ones, unless others make up for it.
            weights: if self == Recipe::Best { WeightRange::Mse } else { WeightRange::Absmax },
            rounding: if self == Recipe::Best { Rounding::Compensated } else { Rounding::Nearest },
            bias_correction: self == Recipe::Best,
            equalize: self == Recipe::Best,
            keep_float: Vec::new(),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Recipe::Balanced.options()
    }
}
