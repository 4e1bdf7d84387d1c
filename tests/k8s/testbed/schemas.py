#!/usr/bin/env python3
"""Writes strict JSON schemas for kubeconform.

  schemas.py OUT SWAGGER.json < crds.yaml

SWAGGER.json is api/openapi-spec/swagger.json of the k8s.io/kubernetes module.
Strict: a field that the API does not know is refused, and so are ports and
counts out of range, which the API's own schema leaves to the server. Use:

  kubeconform -strict -schema-location \
    'OUT/{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json' FILE...
"""
import json
import os
import sys

import yaml

PORTS = {"port", "containerPort", "targetPort", "endPort"}
COUNTS = {"replicas", "completions", "parallelism", "backoffLimit",
          "terminationGracePeriodSeconds", "failureThreshold", "maxRestarts"}


def bounded(name, schema):
    """`schema` of the property `name` with the range that the server checks."""
    types = schema.get("type", [])
    if "integer" not in ([types] if isinstance(types, str) else types):
        return schema
    if name in PORTS:
        return {**schema, "minimum": 1, "maximum": 65535}
    if name in COUNTS:
        return {**schema, "minimum": 0}
    return schema


def strict(node, definitions, seen=()):
    if isinstance(node, list):
        return [strict(x, definitions, seen) for x in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        name = node["$ref"].rsplit("/", 1)[1]
        if name.endswith(".resource.Quantity"):
            return {"type": ["string", "number"]}
        if name in seen:  # a recursive type: JSONSchemaProps
            return {}
        return strict(definitions[name], definitions, seen + (name,))
    if (node.get("format") == "int-or-string" or
            node.get("x-kubernetes-int-or-string")):
        return {"type": ["string", "integer"]}
    node = {key: strict(value, definitions, seen)
            for key, value in node.items()
            if key != "description" or not isinstance(value, str)}
    properties = node.get("properties")
    if isinstance(properties, dict):
        node["properties"] = {
            key: bounded(key, value) if isinstance(value, dict) else value
            for key, value in properties.items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
    return node


def main(out, swagger):
    os.makedirs(out, exist_ok=True)
    with open(swagger, encoding="utf-8") as file:
        definitions = json.load(file)["definitions"]

    def write(kind, group, version, schema):
        # kubeconform takes the version for the core group's name.
        name = f"{kind.lower()}-{group or version}-{version}.json"
        with open(os.path.join(out, name), "w", encoding="utf-8") as file:
            json.dump(schema, file)

    for name, body in definitions.items():
        gvks = body.get("x-kubernetes-group-version-kind", [])
        if len(gvks) == 1 and "kind" in body.get("properties", {}):
            write(gvks[0]["kind"], gvks[0]["group"], gvks[0]["version"],
                  strict(body, definitions, (name,)))
    meta = strict({"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1"
                           ".ObjectMeta"}, definitions)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for crd in yaml.load_all(sys.stdin, Loader=loader):
        if not crd:
            continue
        for version in crd["spec"]["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"], definitions)
            schema["properties"].update(apiVersion={"type": "string"},
                                        kind={"type": "string"}, metadata=meta)
            write(crd["spec"]["names"]["kind"], crd["spec"]["group"],
                  version["name"], schema)


if __name__ == "__main__":
    main(*sys.argv[1:3])
