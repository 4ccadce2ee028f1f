//! ONNX files: reading with limits, validation, and small helpers over the protobuf messages.

use crate::{Error, Result};
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::path::Path;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::type_proto::Value;
pub use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use tract_onnx::pb::{OperatorSetIdProto, StringStringEntryProto, ValueInfoProto};

/// Largest model file read: protobuf's own limit of 2 GiB.
pub const MAX_MODEL_BYTES: u64 = (2 << 30) - 1;

/// Reads, decodes and validates a model file.
pub fn load(path: &Path) -> Result<ModelProto> {
    let file = crate::files::open_regular(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if length > MAX_MODEL_BYTES {
        return Err(Error::InvalidModel(format!("{} has {length} bytes, the limit is {MAX_MODEL_BYTES}", path.display())));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(MAX_MODEL_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    let mut model = parse(&bytes)?;
    drop(bytes);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    super::external::embed(&mut model, folder)?;
    validate(&model)?;
    Ok(model)
}

/// Decodes and validates a model.
pub fn decode(bytes: &[u8]) -> Result<ModelProto> {
    if bytes.len() as u64 > MAX_MODEL_BYTES {
        return Err(Error::InvalidModel(format!("more than {MAX_MODEL_BYTES} bytes")));
    }
    let model = parse(bytes)?;
    validate(&model)?;
    Ok(model)
}

fn parse(bytes: &[u8]) -> Result<ModelProto> {
    ModelProto::decode(bytes).map_err(|e| Error::InvalidModel(format!("not an ONNX file, or truncated ({e}); export it again")))
}

/// Writes bytes so that readers see the old file or the whole new one, never a part.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically_with(path, |file| file.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// The same, for what is made piece by piece. Nothing is written where `write` fails.
pub fn write_atomically_with<E: From<Error>>(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), E>) -> Result<(), E> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| Error::io(path, e))?;
    let mut buffered = std::io::BufWriter::new(&mut file);
    write(&mut buffered)?;
    buffered.flush().map_err(|e| Error::io(path, e))?;
    drop(buffered);
    file.as_file().sync_all().map_err(|e| Error::io(path, e))?;
    // Temporary files are private; a model should have the permissions of any new file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode).map_err(|e| Error::io(path, e))?;
    }
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

/// How messages call a node: its name, or its first output, with the operator type.
pub fn node_name(node: &NodeProto) -> String {
    let name = if node.name.is_empty() { node.output.first().map_or("?", |s| s) } else { &node.name };
    format!("{name} ({})", node.op_type)
}

/// An error about a node.
pub fn node_error(node: &NodeProto, reason: impl Into<String>) -> Error {
    Error::InvalidModel(format!("node {}: {}", node_name(node), reason.into()))
}

/// The graph of a validated model.
pub fn graph(model: &ModelProto) -> Result<&GraphProto> {
    model.graph.as_ref().ok_or_else(|| Error::InvalidModel("the file holds no graph".into()))
}

/// The graph of a validated model, to change.
pub fn graph_mut(model: &mut ModelProto) -> Result<&mut GraphProto> {
    model.graph.as_mut().ok_or_else(|| Error::InvalidModel("the file holds no graph".into()))
}

/// Version of the default operator set.
pub fn opset(model: &ModelProto) -> i64 {
    model.opset_import.iter().find(|o| is_default_domain(&o.domain)).map_or(0, |o| o.version)
}

/// Sets the version of the default operator set, and the IR version it needs at least.
pub fn set_opset(model: &mut ModelProto, version: i64) {
    match model.opset_import.iter_mut().find(|o| is_default_domain(&o.domain)) {
        Some(o) => o.version = version,
        None => model.opset_import.push(OperatorSetIdProto { domain: String::new(), version }),
    }
    model.ir_version = model.ir_version.max(7); // opset 13 came with IR version 7
}

/// True for ONNX's own operators.
pub fn is_default_domain(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// True if the node is this operator of ONNX's own set.
pub fn is_op(node: &NodeProto, op: &str) -> bool {
    node.op_type == op && is_default_domain(&node.domain)
}

/// An attribute of a node.
pub fn attr<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}
/// An integer attribute or its default.
pub fn attr_int(node: &NodeProto, name: &str, default: i64) -> i64 {
    attr(node, name).map_or(default, |a| a.i)
}
/// A float attribute or its default.
pub fn attr_float(node: &NodeProto, name: &str, default: f32) -> f32 {
    attr(node, name).map_or(default, |a| a.f)
}
/// A list of integers, empty where absent.
pub fn attr_ints<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    attr(node, name).map_or(&[], |a| &a.ints)
}
/// Builds an integer attribute.
pub fn int_attribute(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i, ..Default::default() }
}

/// The non-empty input names of a node.
pub fn inputs(node: &NodeProto) -> impl Iterator<Item = &str> {
    node.input.iter().map(String::as_str).filter(|s| !s.is_empty())
}
/// The non-empty output names of a node.
pub fn outputs(node: &NodeProto) -> impl Iterator<Item = &str> {
    node.output.iter().map(String::as_str).filter(|s| !s.is_empty())
}

/// Builds a node with one output, named after it.
pub fn make_node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: format!("{output}/{op}"),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: vec![output.into()],
        attribute,
        ..Default::default()
    }
}

fn raw_tensor(name: &str, dims: &[usize], data_type: DataType, raw_data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: data_type as i32,
        raw_data,
        ..Default::default()
    }
}
/// Builds an f32 tensor.
pub fn f32_tensor(name: &str, dims: &[usize], data: &[f32]) -> TensorProto {
    raw_tensor(name, dims, DataType::Float, data.iter().flat_map(|v| v.to_le_bytes()).collect())
}
/// Builds an i32 tensor.
pub fn i32_tensor(name: &str, dims: &[usize], data: &[i32]) -> TensorProto {
    raw_tensor(name, dims, DataType::Int32, data.iter().flat_map(|v| v.to_le_bytes()).collect())
}
/// Builds an i64 tensor.
pub fn i64_tensor(name: &str, dims: &[usize], data: &[i64]) -> TensorProto {
    raw_tensor(name, dims, DataType::Int64, data.iter().flat_map(|v| v.to_le_bytes()).collect())
}
/// Builds an i8 tensor.
pub fn i8_tensor(name: &str, dims: &[usize], data: &[i8]) -> TensorProto {
    raw_tensor(name, dims, DataType::Int8, data.iter().map(|&v| v as u8).collect())
}
/// Builds a u8 tensor.
pub fn u8_tensor(name: &str, dims: &[usize], data: &[u8]) -> TensorProto {
    raw_tensor(name, dims, DataType::Uint8, data.to_vec())
}

/// The dimensions of a tensor; every one is ≥ 0 and their product fits memory.
pub fn tensor_dims(t: &TensorProto) -> Result<Vec<usize>> {
    let bad = || Error::tensor(&t.name, format!("impossible dimensions {:?}", t.dims));
    let dims: Vec<usize> = t.dims.iter().map(|&d| usize::try_from(d).map_err(|_| bad())).collect::<Result<_>>()?;
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= i32::MAX as usize).ok_or_else(bad)?;
    Ok(dims)
}

fn element_count(t: &TensorProto) -> Result<usize> {
    Ok(tensor_dims(t)?.iter().product())
}

/// The elements of an f32 tensor.
pub fn f32_data(t: &TensorProto) -> Result<Vec<f32>> {
    if t.data_type != DataType::Float as i32 {
        return Err(Error::tensor(&t.name, "float32 values expected; convert the model to float32 first"));
    }
    let data: Vec<f32> = if t.raw_data.is_empty() {
        t.float_data.clone()
    } else {
        t.raw_data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    (data.len() == element_count(t)?).then_some(data).ok_or_else(|| Error::tensor(&t.name, "its data does not fill its dimensions"))
}

/// The elements of an i64 tensor.
pub fn i64_data(t: &TensorProto) -> Result<Vec<i64>> {
    if t.data_type != DataType::Int64 as i32 {
        return Err(Error::tensor(&t.name, "int64 values expected"));
    }
    Ok(if t.raw_data.is_empty() {
        t.int64_data.clone()
    } else {
        t.raw_data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    })
}

fn validate_tensor(t: &TensorProto) -> Result<()> {
    let fail = |reason: &str| Err(Error::tensor(&t.name, reason));
    if t.data_location == Some(DataLocation::External as i32) || !t.external_data.is_empty() {
        return fail("its data is in another file, which is only read beside a model file");
    }
    if t.segment.is_some() {
        return fail("segmented tensors are not supported");
    }
    let count = element_count(t)?;
    let width = match DataType::try_from(t.data_type) {
        Ok(DataType::Float | DataType::Int32 | DataType::Uint32) => 4,
        Ok(DataType::Double | DataType::Int64 | DataType::Uint64 | DataType::Complex64) => 8,
        Ok(DataType::Uint8 | DataType::Int8 | DataType::Bool) => 1,
        Ok(DataType::Float16 | DataType::Bfloat16 | DataType::Int16 | DataType::Uint16) => 2,
        Ok(DataType::String) => return Ok(()),
        Ok(DataType::Uint4 | DataType::Int4) => return validate_packed(t, count),
        _ => return fail("its element type is unknown or not supported"),
    };
    let stored = if t.raw_data.is_empty() {
        t.float_data.len().max(t.int32_data.len()).max(t.int64_data.len()).max(t.double_data.len()).max(t.uint64_data.len())
    } else if t.raw_data.len().is_multiple_of(width) {
        t.raw_data.len() / width
    } else {
        return fail("its data ends within an element");
    };
    // Complex numbers may be stored as pairs; nothing here reads them.
    if stored != count && t.data_type != DataType::Complex64 as i32 {
        return fail(&format!("dimensions {:?} want {count} elements, {stored} are stored", t.dims));
    }
    let finite = match DataType::try_from(t.data_type) {
        Ok(DataType::Float) if t.raw_data.is_empty() => t.float_data.iter().all(|v| v.is_finite()),
        Ok(DataType::Float) => t.raw_data.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
        Ok(DataType::Double) if t.raw_data.is_empty() => t.double_data.iter().all(|v| v.is_finite()),
        Ok(DataType::Double) => t.raw_data.as_chunks::<8>().0.iter().all(|b| f64::from_le_bytes(*b).is_finite()),
        _ => true,
    };
    if finite { Ok(()) } else { fail("it holds NaN or infinity; the training probably diverged") }
}

/// Four-bit integers, two to a byte.
fn validate_packed(t: &TensorProto, count: usize) -> Result<()> {
    let stored = if t.raw_data.is_empty() { t.int32_data.len() } else { t.raw_data.len() };
    if stored == count.div_ceil(2) {
        Ok(())
    } else {
        Err(Error::tensor(&t.name, format!("{count} packed elements want {} bytes, {stored} are stored", count.div_ceil(2))))
    }
}

/// Refuses windows far beyond any network's: a broken file's would take memory and time without bound, here or in tract.
fn check_geometry(node: &NodeProto) -> Result<()> {
    if !["Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "MaxPool", "AveragePool", "QLinearAveragePool"]
        .contains(&node.op_type.as_str())
    {
        return Ok(());
    }
    for (name, range) in
        [("kernel_shape", 1..=4096), ("strides", 1..=4096), ("dilations", 1..=4096), ("pads", 0..=64), ("output_padding", 0..=64)]
    {
        if let Some(v) = attr_ints(node, name).iter().find(|v| !range.contains(*v)) {
            return Err(node_error(node, format!("{name} holds {v}; {} to {} is supported", range.start(), range.end())));
        }
    }
    Ok(())
}

/// Operators whose result's size is named by integer operands, and which operands these are.
const SIZED: &[(&str, &[usize])] = &[
    ("ConstantOfShape", &[0]),
    ("Expand", &[1]),
    ("Pad", &[1]),
    ("Range", &[0, 1, 2]),
    ("Reshape", &[1]),
    ("Resize", &[3]),
    ("Tile", &[1]),
];
/// Most elements that such operands may ask for.
const MAX_NAMED_ELEMENTS: i64 = 1 << 22;

/// Refuses constant sizes far beyond any network's, for the same reason.
fn check_sizes(node: &NodeProto, constants: &HashMap<&str, &TensorProto>) -> Result<()> {
    let operands = SIZED.iter().find(|(op, _)| *op == node.op_type).map_or(&[][..], |(_, operands)| operands);
    for name in operands.iter().filter_map(|&i| node.input.get(i)).map(String::as_str) {
        let Some(t) = constants.get(name).filter(|t| t.data_type == DataType::Int64 as i32) else { continue };
        let sizes = i64_data(t)?;
        let product = sizes.iter().try_fold(1i64, |n, &d| n.checked_mul(d.checked_abs()?.max(1))).filter(|&n| n <= MAX_NAMED_ELEMENTS);
        if product.is_none() {
            return Err(node_error(node, format!("`{name}` asks for sizes {sizes:?}; up to {MAX_NAMED_ELEMENTS} elements are supported")));
        }
    }
    Ok(())
}

/// Checks what the later stages rely on: one definition per name, definitions before uses
/// (which excludes cycles), whole and finite initializers, and known graph outputs.
pub fn validate(model: &ModelProto) -> Result<()> {
    let graph = graph(model)?;
    if graph.node.is_empty() {
        return Err(Error::InvalidModel("the graph holds no nodes".into()));
    }
    if !graph.sparse_initializer.is_empty() {
        return Err(Error::InvalidModel("sparse initializers are not supported; export dense weights".into()));
    }
    let mut defined: HashSet<&str> = HashSet::new();
    for t in &graph.initializer {
        validate_tensor(t)?;
        if t.name.is_empty() || !defined.insert(&t.name) {
            return Err(Error::tensor(&t.name, "two initializers have this name, or it is empty"));
        }
    }
    let mut seen = HashSet::new();
    for i in &graph.input {
        if i.name.is_empty() || !seen.insert(&i.name) {
            return Err(Error::tensor(&i.name, "two graph inputs have this name, or it is empty"));
        }
        defined.insert(&i.name); // an initializer may give an input its default
    }
    let stored = graph
        .node
        .iter()
        .filter(|n| is_op(n, "Constant"))
        .filter_map(|n| Some((n.output.first()?.as_str(), attr(n, "value")?.t.as_ref()?)));
    let constants: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).chain(stored).collect();
    let produced: HashMap<&str, &NodeProto> = graph.node.iter().flat_map(|n| outputs(n).map(move |o| (o, n))).collect();
    for node in &graph.node {
        check_geometry(node)?;
        check_sizes(node, &constants)?;
        for a in &node.attribute {
            a.t.iter().chain(&a.tensors).try_for_each(validate_tensor)?;
        }
        if let Some(name) = inputs(node).find(|n| !defined.contains(n)) {
            let reason = if produced.contains_key(name) {
                format!("it reads `{name}` before that is computed: the graph has a cycle or is not sorted")
            } else {
                format!("its input `{name}` is computed nowhere")
            };
            return Err(node_error(node, reason));
        }
        // tract reads dimension 1 of a BatchNorm's input unchecked: constants, often vectors, must not get there.
        let constant = |name: &String| constants.get(name.as_str()).is_some_and(|t| t.dims.len() < 2);
        if is_op(node, "BatchNormalization") && node.input.first().is_some_and(constant) {
            return Err(node_error(node, "its input is a constant vector, a tensor N×C… is needed"));
        }
        for name in outputs(node) {
            if !defined.insert(name) {
                return Err(node_error(node, format!("its output `{name}` is already defined")));
            }
        }
    }
    if graph.output.is_empty() {
        return Err(Error::InvalidModel("the graph has no output".into()));
    }
    match graph.output.iter().find(|o| !defined.contains(o.name.as_str())) {
        Some(o) => Err(Error::tensor(&o.name, "this graph output is computed nowhere")),
        None => Ok(()),
    }
}

/// Names read inside subgraphs (If, Loop, Scan): no rewriting may remove or rename them.
pub fn captured_names(graph: &GraphProto) -> HashSet<String> {
    fn walk(graph: &GraphProto, inside: bool, out: &mut HashSet<String>) {
        for node in &graph.node {
            if inside {
                out.extend(inputs(node).map(String::from));
            }
            for a in &node.attribute {
                a.g.iter().chain(&a.graphs).for_each(|g| walk(g, true, out));
            }
        }
        if inside {
            out.extend(graph.output.iter().map(|o| o.name.clone()));
        }
    }
    let mut out = HashSet::new();
    walk(graph, false, &mut out);
    out
}

/// Who reads each tensor: number of reads by nodes, subgraphs and graph outputs.
pub fn use_counts(graph: &GraphProto) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    let outputs = graph.output.iter().map(|o| o.name.clone());
    for name in graph.node.iter().flat_map(|n| inputs(n).map(String::from)).chain(outputs).chain(captured_names(graph)) {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// A name nothing in the graph has yet.
pub fn fresh_name(taken: &mut HashSet<String>, wanted: &str) -> String {
    let mut name = wanted.to_string();
    let mut n = 1;
    while !taken.insert(name.clone()) {
        n += 1;
        name = format!("{wanted}_{n}");
    }
    name
}

/// Every tensor name of a graph.
pub fn all_names(graph: &GraphProto) -> HashSet<String> {
    graph
        .initializer
        .iter()
        .map(|t| t.name.clone())
        .chain(graph.input.iter().map(|i| i.name.clone()))
        .chain(graph.node.iter().flat_map(|n| outputs(n).map(String::from)))
        .chain(captured_names(graph))
        .collect()
}

/// Removes initializers nothing reads, and shape notes of tensors that no longer exist.
pub fn prune(graph: &mut GraphProto) {
    let used = use_counts(graph);
    graph.initializer.retain(|t| used.contains_key(&t.name));
    let names = all_names(graph);
    graph.value_info.retain(|v| names.contains(&v.name));
}

/// The one input that is no initializer, of any element type, with its dimensions (`None`: dynamic).
pub fn picture_input(graph: &GraphProto) -> Result<(String, i32, Vec<Option<usize>>)> {
    let constants: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let data: Vec<&ValueInfoProto> = graph.input.iter().filter(|i| !constants.contains(i.name.as_str())).collect();
    let [input] = data[..] else {
        let names: Vec<&str> = data.iter().map(|i| i.name.as_str()).collect();
        return Err(Error::InvalidModel(format!(
            "a model with one data input is needed, it has {} (`{}`); make the others initializers",
            names.len(),
            names.join("`, `")
        )));
    };
    let Some(Value::TensorType(t)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return Err(Error::tensor(&input.name, "the graph input has no tensor type"));
    };
    let Some(shape) = &t.shape else {
        return Err(Error::tensor(&input.name, "the graph input has no shape; export with one"));
    };
    let dims = shape.dim.iter().map(|d| match d.value {
        Some(dimension::Value::DimValue(v)) if v > 0 => Some(v as usize),
        _ => None,
    });
    Ok((input.name.clone(), t.elem_type, dims.collect()))
}

/// The same of a canonical model, where that input is float32.
pub fn data_input(graph: &GraphProto) -> Result<(String, Vec<Option<usize>>)> {
    let (name, elem_type, dims) = picture_input(graph)?;
    if elem_type != DataType::Float as i32 {
        return Err(Error::tensor(&name, "the graph input must be float32"));
    }
    Ok((name, dims))
}

/// Gives the data input these dimensions.
pub fn set_input_dims(graph: &mut GraphProto, name: &str, dims: &[usize]) {
    for input in graph.input.iter_mut().filter(|i| i.name == name) {
        if let Some(Value::TensorType(t)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            let dim = |&d: &usize| Dimension { value: Some(dimension::Value::DimValue(d as i64)), ..Default::default() };
            t.shape.get_or_insert_default().dim = dims.iter().map(dim).collect();
        }
    }
}

/// Adds a tensor to the graph's outputs (its type is left to inference).
pub fn expose(graph: &mut GraphProto, name: &str) {
    graph.output.push(ValueInfoProto { name: name.into(), ..Default::default() });
}

/// A metadata value of the model.
pub fn metadata<'a>(model: &'a ModelProto, key: &str) -> Option<&'a str> {
    model.metadata_props.iter().find(|e| e.key == key).map(|e| e.value.as_str())
}

/// Sets a metadata value of the model.
pub fn set_metadata(model: &mut ModelProto, key: &str, value: String) {
    model.metadata_props.retain(|e| e.key != key);
    model.metadata_props.push(StringStringEntryProto { key: key.into(), value });
}
