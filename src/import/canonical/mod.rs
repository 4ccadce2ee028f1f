//! The front end of every ONNX file: the many forms in which exporters write one network become one.
//!
//! [`canonicalize`] runs before anything is matched, in the runtime and in the quantizer. What comes out:
//!
//! * operators of the newest [operator set](opset), whatever the file was written in ([`opset`], `steps`);
//! * constants as initializers with raw data, no node that hands its input on, nothing computed from constants alone,
//!   sizes as numbers (`clean`, `fold`, `evaluate`, `facts`);
//! * real numbers in float32 (`interface`);
//! * quantization as DequantizeLinear, operator, QuantizeLinear, each pair written one way (`qoperators`, `quantized`);
//! * channels-first pictures, and Transposes only where the network itself has them (`layout`).
//!
//! The result computes what the file says, on real values: half precision is computed in float32, and everything that is
//! quantized keeps its integers. Each pass walks the nodes once; sizes are bounded before memory is taken.

mod clean;
mod evaluate;
mod facts;
mod fold;
mod interface;
mod layout;
mod older;
pub mod opset;
mod qoperators;
mod quantized;
mod steps;
mod tensor;
mod windows;

pub use interface::{Interface, channels_last, open_size};
pub use older::write_older;
pub use windows::explicit as explicit_window;

use crate::Error;
use crate::Result;
use crate::import::onnx::{self, ModelProto};

/// Brings a model that [`onnx::load`] has read to the one form. A model in that form stays as it is.
pub fn canonicalize(model: &mut ModelProto, interface: &Interface) -> Result<()> {
    if let Some(f) = model.functions.first() {
        return Err(Error::UnsupportedModel(format!(
            "it defines functions of its own (`{}`); inline them: onnx.inliner.inline_local_functions(model)",
            f.name()
        )));
    }
    opset::raise(model)?;
    // From IR version 4 on, initializers need not be graph inputs.
    model.ir_version = model.ir_version.max(4);
    let graph = onnx::graph_mut(model)?;
    if graph.name.is_empty() {
        graph.name = "graph".into(); // required by the checker
    }
    if !interface.outputs.is_empty() {
        interface::choose_outputs(graph, &interface.outputs)?;
    }
    clean::constants(graph)?;
    interface::widen(graph)?;
    if let Some(size) = interface.size {
        interface::fix_size(graph, size)?;
    }
    clean::free_batch(graph);
    clean::remove_dead(graph);
    qoperators::expand(graph)?;
    let mut facts = fold::fold(graph)?;
    if interface::real_inputs(graph) {
        facts = fold::fold(graph)?;
    }
    quantized::unify(graph, &facts)?;
    if interface.real_outputs && interface::real_outputs(graph, |name| facts.data_type(name)) {
        facts = fold::fold(graph)?;
        quantized::unify(graph, &facts)?;
    }
    clean::remove_dead(graph);
    layout::remove_transposes(graph)?;
    clean::remove_dead(graph);
    onnx::validate(model)
}
