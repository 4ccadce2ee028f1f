//! Brings the many forms in which exporters write one network to the form the later stages know.
//!
//! [`simplify`] needs no shapes and runs when a file is read: [`clean`] removes what is not computation, [`float`] makes
//! every real number float32, [`constant`] computes what depends on constants only, [`layout`] moves Transposes out.
//! [`shaped`] runs when shapes are known: paddings, reshapes and lone BatchNorms.

pub mod clean;
pub mod constant;
pub mod float;
pub mod layout;
pub mod shaped;

use crate::Result;
use crate::onnx::{self, ModelProto};

/// All passes that need no shapes. The result computes the same function; an N×H×W×C input may have become N×C×H×W.
pub fn simplify(model: &mut ModelProto) -> Result<()> {
    // From IR version 4 on, initializers need not be graph inputs.
    model.ir_version = model.ir_version.max(4);
    let graph = onnx::graph_mut(model)?;
    if graph.name.is_empty() {
        graph.name = "graph".into(); // required by the checker
    }
    clean::constants_to_initializers(graph);
    clean::free_batch(graph);
    float::to_f32(graph)?;
    clean::remove_identities(graph);
    constant::fold(model)?;
    layout::remove_transposes(onnx::graph_mut(model)?)?;
    onnx::prune(onnx::graph_mut(model)?);
    onnx::validate(model)
}
