"""Writes the image's bill of materials: CycloneDX 1.5 JSON on stdout, from dpkg's list and cargo's metadata.

The same packages give the same bytes: no time of day, no random identifier.
"""

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import tomllib
import urllib.parse
import uuid
from pathlib import Path

TARGET = "aarch64-unknown-linux-gnu"


def debian_packages(status: Path):
    """(name, version, architecture, source) of every installed package."""
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Status", "").endswith(" installed"):
            yield fields["Package"], fields["Version"], fields["Architecture"], fields.get("Source", fields["Package"])


def debian_component(name: str, version: str, architecture: str, source: str) -> dict:
    purl = f"pkg:deb/debian/{name}@{urllib.parse.quote(version)}?arch={architecture}&distro=trixie"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "properties": [{"name": "debian:source", "value": source}],
    }


def crates(repository: Path):
    """The crates that edge-infer's binary is made of, and its own version."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]
    metadata = json.loads(subprocess.run(command, cwd=repository, check=True, stdout=subprocess.PIPE).stdout)
    lock = tomllib.loads((repository / "Cargo.lock").read_text(encoding="utf-8"))
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    root = next(p for p in metadata["packages"] if p["name"] == "edge-infer")
    reached, waiting = set(), [root["id"]]
    while waiting:
        package = waiting.pop()
        if package in reached:
            continue
        reached.add(package)
        # Crates for tests and build scripts are not in the binary.
        waiting += [d["pkg"] for d in nodes[package]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
    components = []
    for package in sorted((packages[i] for i in reached if i != root["id"]), key=lambda p: (p["name"], p["version"])):
        purl = f"pkg:cargo/{package['name']}@{package['version']}"
        component = {"type": "library", "bom-ref": purl, "name": package["name"], "version": package["version"], "purl": purl}
        if checksum := checksums.get((package["name"], package["version"])):
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if package["license"]:
            component["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        components.append(component)
    return root["version"], components


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dpkg-status", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--deb", type=Path, required=True, help="edge-infer's package")
    parser.add_argument("--packages", type=Path, required=True, help="also write names and versions here, one a line")
    options = parser.parse_args()

    debian = sorted(p for p in debian_packages(options.dpkg_status) if p[0] != "edge-infer")
    options.packages.write_text("".join(f"{name} {version} {architecture}\n" for name, version, architecture, _ in debian))
    version, libraries = crates(options.repository)
    program = {
        "type": "application",
        "bom-ref": f"edge-infer@{version}",
        "name": "edge-infer",
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(options.deb.read_bytes()).hexdigest()}],
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
    }
    components = [program, *libraries, *(debian_component(*package) for package in debian)]
    time = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
    identity = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(components, sort_keys=True))
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{identity}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "firmware", "bom-ref": "edge-infer-image", "name": "edge-infer-image", "version": version},
        },
        "components": components,
        "dependencies": [{"ref": "edge-infer-image", "dependsOn": [c["bom-ref"] for c in components if c not in libraries]},
                         {"ref": program["bom-ref"], "dependsOn": [c["bom-ref"] for c in libraries]}],
    }
    print(json.dumps(bom, indent=1))


if __name__ == "__main__":
    main()
