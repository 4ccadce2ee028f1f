"""Results as JSON lines, and the Markdown made of them."""

import collections
import json
import os
import re


def load(path):
    """The last row of each network and exporter."""
    rows = {}
    if os.path.exists(path):
        with open(path) as f:
            for line in f:
                row = json.loads(line)
                rows[row["family"], row["network"], row["exporter"]] = row
    return rows


def append(path, row):
    with open(path, "a") as f:
        f.write(json.dumps(row) + "\n")


def cause(message):
    """A message without names and numbers, to count its kind."""
    first = message.strip().splitlines()[-1] if message.strip() else "no message"
    first = re.sub(r"`[^`]*`", "`…`", first)
    first = re.sub(r"\[[^\]]*\]", "[…]", first)
    return re.sub(r"\b\d+(\.\d+)?\b", "…", first)[:160]


def number(value, form):
    return "" if value is None else format(value, form)


def nearest(row):
    """Steps from the nearer of ONNX Runtime's two arithmetics: with optimizations it computes what it can in integers, without in f32."""
    return None if row.get("steps") is None else min(row["steps"], row["steps_fast"])


def cells(row):
    """One line of the table."""
    names = [row["network"], row["exporter"]]
    if row["status"] != "run":
        message = " ".join(row["message"].split()).replace("|", "\\|")
        return [*names, f"{row['status']} ({row['stage']}): {message[:200]}"] + [""] * 9
    share = row.get("int8_share")
    return [
        *names,
        "run",
        "" if share is None else f"{100 * share:.1f} %" if share < 0.9995 else "100 %",
        str(row["regions"]),
        "" if row.get("top1") is None else f"{100 * max(row['top1'], row['top1_fast']):.4g} %",
        number(nearest(row), ".2g"),
        number(row.get("steps_between"), ".2g"),
        number(row.get("sqnr_db"), ".1f"),
        number(row.get("ours_ms"), ".2f"),
        number(row.get("onnxruntime_ms"), ".2f"),
        number(row.get("openvino_ms"), ".2f"),
    ]


HEAD = ["network", "exporter", "result", "MACs in int8", "regions", "same top-1", "steps from ONNX Runtime", "ONNX Runtime from itself", "SQNR, dB", "ms", "ONNX Runtime, ms", "OpenVINO, ms"]


def lines(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def summary(rows):
    """Counts, and what is refused or stays float, by cause."""
    rows = list(rows)
    run = [r for r in rows if r["status"] == "run"]
    full = [r for r in run if (r.get("int8_share") or 0) >= 0.99]
    one = [r for r in full if r["regions"] == 1]
    yield f"{len(rows)} files: {len(run)} run, {len(rows) - len(run)} refused; {len(full)} have 99 % of their multiply-accumulates in int8 or more, {len(one)} of them in one region."
    refused = collections.defaultdict(list)
    for r in rows:
        if r["status"] != "run":
            refused[r["stage"], cause(r["message"])].append(r)
    if refused:
        yield "\n## Refused, by cause\n"
        table = sorted(refused.items(), key=lambda kv: -len(kv[1]))
        yield from lines(["files", "stage", "cause", "networks", "one message"], ([str(len(rs)), stage, text.replace("|", "\\|"), ", ".join(sorted({r["network"] for r in rs})[:6]), " ".join(rs[0]["message"].split())[:300].replace("|", "\\|")] for (stage, text), rs in table))
    why = collections.defaultdict(lambda: (set(), [0]))
    for r in run:
        for n in r["float"]:
            networks, macs = why[n["op"], cause(n["why"])]
            networks.add(r["network"])
            macs[0] += n["macs"] or 0
    if why:
        yield "\n## Float, by cause\n"
        table = sorted(why.items(), key=lambda kv: (-len(kv[1][0]), kv[0]))
        yield from lines(["networks", "operator", "why", "their MMACs", "some"], ([str(len(n)), op, text.replace("|", "\\|"), f"{m[0] / 1e6:.1f}", ", ".join(sorted(n)[:6])] for (op, text), (n, m) in table))


def markdown(rows, title, note):
    rows = sorted(rows, key=lambda r: r.get("order", 0))
    out = [f"# {title}", note, "", *summary(rows), "\n## All\n", *lines(HEAD, map(cells, rows))]
    return "\n".join(out) + "\n"
