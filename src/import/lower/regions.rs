//! Operations become nodes of regions; what the graph's outputs need is kept.

use super::*;

impl<'a> Lowering<'a> {
    /// `tensor` as seen in region `level`: itself, or its values quantized again at that region's entry, which is exact.
    pub(super) fn at_level(&mut self, tensor: TensorId, level: usize) -> TensorId {
        if self.level[tensor] == level {
            return tensor;
        }
        if let Some(&t) = self.bridges.get(&(tensor, level)) {
            return t;
        }
        let Tensor { name, quant, flat } = self.tensors[tensor].clone();
        // Only real values are ever inputs of operations, so the name exists.
        let source = self.real_name[tensor].unwrap_or_default().to_owned();
        let id = self.new_tensor(&name, quant, flat, level);
        self.nodes.push(Node { name: format!("{name}/bridge"), op: Quantize { source }.into(), inputs: vec![], output: Some(id) });
        self.bridges.insert((tensor, level), id);
        id
    }

    /// `x` with its channels written twice, for weights that are the sum of two.
    pub(super) fn doubled(&mut self, x: TensorId, node: &str) -> TensorId {
        let Tensor { name, quant, flat } = self.tensors[x].clone();
        let id = self.new_tensor(&format!("{name}/twice"), quant, flat, self.level[x]);
        self.nodes.push(Node { name: format!("{node}/twice"), op: Concat.into(), inputs: vec![x, x], output: Some(id) });
        id
    }

    /// Adds the operation that makes `name`.
    pub(super) fn emit(&mut self, p: Pending, name: &str, quant: QuantParams) -> TensorId {
        let mut xs = match &p.base {
            Base::Conv { x, .. }
            | Base::ConvTranspose { x, .. }
            | Base::Gemm { x, .. }
            | Base::MaxPool { x, .. }
            | Base::AveragePool { x, .. }
            | Base::GlobalMaxPool { x }
            | Base::ReduceSum { x }
            | Base::Same { x }
            | Base::Map { x, .. }
            | Base::Move { x, .. }
            | Base::ResizeLinear { x, .. }
            | Base::PRelu { x, .. } => {
                vec![*x]
            }
            Base::Add { a, b } | Base::Sub { a, b } | Base::Mul { a, b } => vec![*a, *b],
            Base::Concat { xs } | Base::Join { xs, .. } => xs.clone(),
        };
        xs.extend(p.residual);
        let level = xs.iter().map(|&t| self.level[t]).max().unwrap_or(0);
        let mut inputs: Vec<TensorId> = xs.iter().map(|&t| self.at_level(t, level)).collect();
        if let Base::Gemm { twice: true, .. } = &p.base {
            inputs[0] = self.doubled(inputs[0], &p.node);
        }
        let clamp = p.clamp;
        let residual = p.residual.is_some();
        let op: Op = match p.base {
            Base::Conv { weights, window, groups, .. } => Conv { weights, window, groups, residual, clamp }.into(),
            Base::ConvTranspose { weights, window, groups, spread, .. } => {
                let conv = Conv { weights, window, groups, residual, clamp };
                let phases = self.new_tensor(&format!("{name}/phases"), quant, false, level);
                self.nodes.push(Node { name: p.node.clone(), op: conv.into(), inputs, output: Some(phases) });
                inputs = vec![phases];
                spread.into()
            }
            Base::Gemm { weights, .. } => Gemm { weights, clamp, float_output: None }.into(),
            Base::AveragePool { window, count_include_pad, .. } => AveragePool { window, count_include_pad, clamp }.into(),
            Base::ReduceSum { .. } => ReduceSum { clamp }.into(),
            Base::Add { .. } => Add { clamp }.into(),
            Base::Sub { .. } => Sub { clamp }.into(),
            Base::Mul { .. } => Mul { clamp }.into(),
            Base::Same { .. } => Requantize { clamp }.into(),
            Base::Map { function, .. } => Map { function, clamp }.into(),
            Base::PRelu { slope, .. } => PRelu { slope: slope.to_vec(), clamp }.into(),
            Base::ResizeLinear { resize, .. } => ResizeLinear { resize, clamp }.into(),
            Base::Concat { .. } if clamp == Clamp::default() => Concat.into(),
            base @ (Base::MaxPool { .. } | Base::GlobalMaxPool { .. } | Base::Concat { .. } | Base::Join { .. } | Base::Move { .. }) => {
                // Pool, move or join at the input's quantization, then requantize.
                let same = self.tensors[inputs[0]].quant;
                let (op, inner): (Op, _) = match base {
                    Base::MaxPool { window, .. } => (MaxPool { window }.into(), same),
                    Base::GlobalMaxPool { .. } => (GlobalMaxPool.into(), same),
                    Base::Move { op, .. } => (op, same),
                    Base::Join { side, .. } => (Join { side }.into(), quant),
                    _ => (Concat.into(), quant),
                };
                if inner == quant && clamp == Clamp::default() {
                    op
                } else {
                    let mid = self.new_tensor(&format!("{name}/inner"), inner, false, level);
                    self.nodes.push(Node { name: p.node.clone(), op, inputs, output: Some(mid) });
                    inputs = vec![mid];
                    Requantize { clamp }.into()
                }
            }
        };
        let id = self.new_tensor(name, quant, p.flat, level);
        self.nodes.push(Node { name: p.node, op, inputs, output: Some(id) });
        id
    }

    /// Keeps what the graph's outputs need: region nodes, and float nodes for tract.
    pub(super) fn finish(mut self, model: &ModelProto, graph: &'a GraphProto) -> Result<Lowered> {
        let producer: HashMap<&str, usize> = graph.node.iter().enumerate().flat_map(|(i, n)| outputs(n).map(move |o| (o, i))).collect();
        // Gemms whose result may leave as floats, and the inputs they need written twice.
        let (mut logits, mut asymmetric) = (HashMap::<&str, Op>::new(), Vec::new());
        for (&name, value) in &self.values {
            if let Value::Pending(Pending { node, base: Base::Gemm { x, weights, twice }, clamp, .. }) = value {
                logits.insert(name, Gemm { weights: weights.clone(), clamp: *clamp, float_output: Some(name.to_owned()) }.into());
                if *twice {
                    asymmetric.push((name, *x, node.clone()));
                }
            }
        }
        let doubled: HashMap<&str, TensorId> = asymmetric.into_iter().map(|(name, x, node)| (name, self.doubled(x, &node))).collect();
        let maker: HashMap<TensorId, usize> = self.nodes.iter().enumerate().filter_map(|(i, n)| Some((n.output?, i))).collect();
        let mut kept: HashSet<usize> = HashSet::new();
        let mut live = vec![false; self.nodes.len()];
        let mut exits: Vec<(usize, Node)> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        let mut todo: Vec<String> = graph.output.iter().map(|o| o.name.clone()).chain(captured_names(graph)).collect();
        while let Some(name) = todo.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let mut tensors = Vec::new();
            match self.values.get(name.as_str()) {
                Some(&Value::Real { tensor, flat: false }) => {
                    exits.push((
                        self.level[tensor],
                        Node {
                            name: format!("{name}/exit"),
                            op: Dequantize { target: name.clone() }.into(),
                            inputs: vec![tensor],
                            output: None,
                        },
                    ));
                    tensors.push(tensor);
                }
                Some(Value::Pending(Pending { node, base: Base::Gemm { x, .. }, clamp, .. })) if *clamp == Clamp::default() => {
                    let Some(op) = logits.remove(name.as_str()) else { continue };
                    let x = doubled.get(name.as_str()).copied().unwrap_or(*x);
                    exits.push((self.level[x], Node { name: node.clone(), op, inputs: vec![x], output: None }));
                    tensors.push(x);
                }
                _ => {
                    if let Some(&index) = producer.get(name.as_str()) {
                        kept.insert(index);
                        todo.extend(inputs(&graph.node[index]).map(String::from));
                    }
                }
            }
            while let Some(t) = tensors.pop() {
                let Some(&index) = maker.get(&t) else { continue };
                if std::mem::replace(&mut live[index], true) {
                    continue;
                }
                tensors.extend(&self.nodes[index].inputs);
                if let Op::Quantize(Quantize { source }) = &self.nodes[index].op {
                    todo.push(source.clone());
                }
            }
        }

        // Renumber tensors per region.
        let mut regions: BTreeMap<usize, (Graph, HashMap<TensorId, TensorId>)> = BTreeMap::new();
        let nodes = std::mem::take(&mut self.nodes).into_iter().zip(live).filter(|(_, live)| *live);
        let nodes = nodes.filter_map(|(n, _)| Some((self.level[n.output?], n))).chain(exits);
        for (level, mut node) in nodes {
            let (region, ids) = regions.entry(level).or_default();
            for id in node.inputs.iter_mut().chain(&mut node.output) {
                let tensors = &self.tensors;
                *id = *ids.entry(*id).or_insert_with(|| {
                    region.tensors.push(tensors[*id].clone());
                    region.tensors.len() - 1
                });
            }
            region.nodes.push(node);
        }
        let regions: Vec<Graph> = regions.into_values().map(|(g, _)| g).collect();

        let mut fallbacks = Vec::new();
        let mut rest = GraphProto { name: graph.name.clone(), output: graph.output.clone(), ..Default::default() };
        for (index, node) in graph.node.iter().enumerate().filter(|(i, _)| kept.contains(i)) {
            rest.node.push(node.clone());
            let why = self.why.get(&index).cloned().unwrap_or_else(|| "its result is needed in float".into());
            let why = if regions.is_empty() { "the model is not quantized".into() } else { why };
            fallbacks.push(Fallback::new(node, why));
        }
        for (index, region) in regions.iter().enumerate() {
            rest.node.push(NodeProto {
                name: format!("int8_region_{index}"),
                op_type: REGION_OP.into(),
                attribute: vec![int_attribute("region", index as i64)],
                input: region.sources().into_iter().map(String::from).collect(),
                output: region.targets().into_iter().map(String::from).collect(),
                ..Default::default()
            });
        }
        let used: HashSet<&str> = rest.node.iter().flat_map(inputs).chain(graph.output.iter().map(|o| o.name.as_str())).collect();
        let captured = captured_names(graph);
        let initializers: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        let initializer =
            graph.initializer.iter().filter(|t| used.contains(t.name.as_str()) || captured.contains(&t.name)).cloned().collect();
        rest.input = graph.input.iter().filter(|i| !initializers.contains(i.name.as_str())).cloned().collect();
        rest.initializer = initializer;
        let rest =
            ModelProto { ir_version: model.ir_version, opset_import: model.opset_import.clone(), graph: Some(rest), ..Default::default() };
        // Integers that only our kernels compute: tract has no such operator to fall back on. The first such node is the cause.
        let integer = |op: &str, foreign: bool| INTEGER_OPS.iter().any(|(domain, o)| *o == op && !(foreign && domain.is_empty()));
        let mut refused = graph.node.iter().enumerate().filter(|(i, n)| kept.contains(i) && integer(&n.op_type, false));
        if fallbacks.iter().any(|f| integer(&f.op, true))
            && let Some((node, why)) = refused.find_map(|(i, n)| Some((n, self.why.get(&i)?)))
        {
            return Err(Error::UnsupportedModel(format!(
                "node {} does not run in int8: {why}; or quantize the float model with edge-quantize, or in QDQ format",
                node_name(node)
            )));
        }
        if regions.iter().flat_map(|r| r.sources()).any(str::is_empty) {
            return Err(Error::UnsupportedModel("a quantized tensor crosses regions without a DequantizeLinear".into()));
        }
        Ok(Lowered { regions, rest, fallbacks })
    }
}
