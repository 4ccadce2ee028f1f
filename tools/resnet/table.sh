#!/usr/bin/env bash
# One row per architecture: build, calibrate BatchNorm, quantize, run, compare. Networks are freshly initialised:
# BatchNorm gets the statistics of the pictures, so SQNR is meaningful; agreement of random classifiers says little.
#   tools/resnet/table.sh PICTURES [ARCH…]      needs `cargo build --release --workspace`, jq, python3 with onnxruntime
#   IMAGES=N: pictures to calibrate with (40); KEEP=FOLDER: leave the int8 models there, for tools/resnet/latency.py
set -euo pipefail
pictures=$(realpath "$1"); shift
here=$(realpath "$(dirname "$0")"); bin=$here/../../target/release
keep=${KEEP:+$(realpath "$KEEP")}
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
  read -r _ ours ort < <("$here/latency.py" int8.onnx)
  size=$(stat -c %s int8.onnx)
  jq -rn --arg a "$arch" --arg e "$ours" --arg o "$ort" --argjson z "$size" --slurpfile s summary.json --slurpfile i inspect.json --slurpfile c compare.json '
    "| \($a) | \($s[0].parameters) | \($z / 1e4 | round / 100) | \($c[0].logit_sqnr_db * 10 | round / 10) | \($c[0].top1_agreement * 1000 | round / 10) % of \($c[0].pictures) | \($i[0].int8_macs / $s[0].macs * 1000 | round / 10) % | \($e) | \($o) |"'
  jq -r '.nodes[] | select(.why) | "left in tract: \(.name) (\(.op)): \(.why)"' inspect.json >&2
  [ -z "$keep" ] || mv int8.onnx "$keep/$arch.onnx"
done
