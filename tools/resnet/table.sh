#!/usr/bin/env bash
# One row per architecture: build, calibrate BatchNorm, quantize, run, compare. Networks are freshly initialised:
# BatchNorm gets the statistics of the pictures, so SQNR is meaningful; agreement of random classifiers says little.
#   tools/resnet/table.sh PICTURES [ARCH…]      needs `cargo build --release --workspace`, jq, python3 with onnxruntime
set -euo pipefail
pictures=$(realpath "$1"); shift
bin=$(realpath "$(dirname "$0")/../../target/release")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
archs=("$@")
[ ${#archs[@]} -gt 0 ] || archs=(resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d
  wide_resnet50_2 wide_resnet101_2 plain18 plain34 plain50 plain101 plain152)
echo "| architecture | parameters | int8 file MB | logit SQNR dB | top-1 agreement | int8 MACs | edge-infer ms | ONNX Runtime ms |"
echo "|---|---|---|---|---|---|---|---|"
for arch in "${archs[@]}"; do
  "$bin/edge-resnet" summary --arch "$arch" --json > summary.json
  "$bin/edge-resnet" export --arch "$arch" -o fresh.onnx 2> /dev/null
  case $arch in
    plain*) mv fresh.onnx float.onnx ;;
    *) "$bin/edge-resnet" calibrate-bn fresh.onnx "$pictures" -o float.onnx > /dev/null ;;
  esac
  "$bin/edge-quantize" float.onnx -o int8.onnx --calib "$pictures" --images "${IMAGES:-40}" --json > quantize.json
  "$bin/edge-infer" inspect int8.onnx --json > inspect.json
  "$bin/edge-infer" compare float.onnx int8.onnx "$pictures" --json > compare.json 2> /dev/null
  ort=$(python3 - <<'P'
import numpy as np, onnxruntime as o, statistics as s, time
m = o.InferenceSession("int8.onnx", providers=["CPUExecutionProvider"]); i = m.get_inputs()[0]
x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32); t = []
for _ in range(25):
    b = time.perf_counter(); m.run(None, {i.name: x}); t.append(1e3 * (time.perf_counter() - b))
print(f"{s.median(t[5:]):.2f}")
P
)
  size=$(stat -c %s int8.onnx)
  jq -rn --arg a "$arch" --arg o "$ort" --argjson z "$size" --slurpfile s summary.json --slurpfile i inspect.json --slurpfile c compare.json '
    "| \($a) | \($s[0].parameters) | \($z / 1e4 | round / 100) | \($c[0].logit_sqnr_db * 10 | round / 10) | \($c[0].top1_agreement * 1000 | round / 10) % of \($c[0].pictures) | \($i[0].int8_macs / $s[0].macs * 1000 | round / 10) % | \($c[0].b.median_ms * 100 | round / 100) | \($o) |"'
  jq -r '.nodes[] | select(.why) | "left in tract: \(.name) (\(.op)): \(.why)"' inspect.json >&2
done
