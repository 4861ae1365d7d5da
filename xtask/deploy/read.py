"""Reads everything that is shipped, as those who will use it read it, and prints it as one JSON document.

What does not parse, or is not what its schema says, ends it with a message. What the parts have to say to each other is
judged elsewhere: src/deploy/rules.rs.
"""

import json
import shlex
import sys
import tomllib
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


def kubernetes(folder):
    manifests, files = {}, {}
    for path in sorted(folder.glob("*.yaml")):
        read = documents(path)
        files[path.name] = [name_of(document) for document in read if "metadata" in document]
        for document in read:
            if document["kind"] == "Kustomization":
                manifests["Kustomization"] = document
                continue
            for version in KUBERNETES:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    sys.exit(f"{path}: not as Kubernetes {version} has it: {'.'.join(map(str, error.path))}: {error.message}")
            manifests[name_of(document)] = document
    return {"files": files, "manifests": manifests}


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
        "dockerfile": stages(root / "Dockerfile"),
        "dockerignore": (root / ".dockerignore").read_text().splitlines(),
        "kubernetes": kubernetes(deploy / "kubernetes"),
        "unit": unit(deploy / "systemd/evergrant.service"),
        "package": tomllib.loads((root / "Cargo.toml").read_text())["workspace"]["package"],
        "api": json.loads((root / "crates/server/openapi.json").read_text())["paths"],
    }
    json.dump(shipped, sys.stdout, default=str)


main()
