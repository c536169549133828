"""Reduces a provider's Pulumi schema to the facts that the stand-ins need: `python -m sandbox.plugins.distill FILE`.

FILE is what `pulumi package get-schema NAME@VERSION` prints for an official provider; the result goes to
`schema/NAME.json`. Names, types, required inputs, secrets and what replaces come from there and from nowhere else, so
a new provider version is taken up by running this again. What a schema does not say is in the plugins, as `Habits`.
"""

import json
import sys
from pathlib import Path
from typing import Any

RESOURCES = {
    "docker": ("container:Container", "remoteImage:RemoteImage", "volume:Volume"),
    "gitlab": ("userRunner:UserRunner",),
    "openstack": (
        "blockstorage/volume:Volume",
        "identity/applicationCredential:ApplicationCredential",
        "identity/ec2CredentialV3:Ec2CredentialV3",
        "instance:Instance",
        "keypair:Keypair",
        "serverGroup:ServerGroup",
        "networking/floatingIp:FloatingIp",
        "networking/floatingIpAssociate:FloatingIpAssociate",
        "networking/port:Port",
        "networking/secGroup:SecGroup",
        "networking/secGroupRule:SecGroupRule",
        "objectstorage/container:Container",
    ),
}
FUNCTIONS = {
    "docker": (),
    "gitlab": ("getCurrentUser:getCurrentUser",),
    "openstack": ("networking/getNetwork:getNetwork", "getImage:getImage", "getFlavor:getFlavor"),
}
# What the version of the Python SDK has, and the schema at hand has not (kreuzwerker/docker 4.6).
ADDED = {
    "docker:index/container:Container": {
        "deviceCgroupRules": {"type": "[string]", "input": True, "replace": True},
        "healthcheck": {"type": "@ContainerHealthcheck", "input": True, "computed": True, "replace": True},
    }
}


def distill(schema: dict[str, Any]) -> dict[str, Any]:
    """The facts about the types that this project uses, from a provider's full schema."""
    name = schema["name"]
    types: dict[str, Any] = {}
    resources = {
        token: {**_resource(resource, schema, types), **ADDED.get(token, {})}
        for token, resource in sorted(schema["resources"].items())
        if token.endswith(RESOURCES[name])
    }
    functions = {
        token: {
            "inputs": _properties(function.get("inputs", {}), schema, types),
            "outputs": _properties(function["outputs"], schema, types),
        }
        for token, function in sorted(schema["functions"].items())
        if token.endswith(FUNCTIONS[name])
    }
    config = _properties({"properties": schema["config"]["variables"]}, schema, types)
    return {"config": config, "resources": resources, "functions": functions, "types": dict(sorted(types.items()))}


def _resource(resource: dict[str, Any], schema: dict[str, Any], types: dict[str, Any]) -> dict[str, Any]:
    required = set(resource.get("requiredInputs", ()))
    # An output that always has a value although nobody must give it is one that the service fills in ("computed").
    always = set(resource.get("required", ()))
    outputs = _properties({"properties": resource["properties"]}, schema, types)
    inputs = _properties({"properties": resource["inputProperties"], "required": sorted(required)}, schema, types)
    facts: dict[str, Any] = {}
    for name in sorted({*outputs, *inputs}):
        fact = {**outputs.get(name, {}), **inputs.get(name, {})}
        if name in inputs:
            fact["input"] = True
        if name not in inputs or (name in always and name not in required):
            fact["computed"] = True
        facts[name] = fact
    return facts


def _properties(owner: dict[str, Any], schema: dict[str, Any], types: dict[str, Any]) -> dict[str, Any]:
    required = owner.get("required", ())
    return {
        name: _property(specification, name in required, schema, types)
        for name, specification in sorted(owner.get("properties", {}).items())
    }


def _property(specification: dict[str, Any], required: bool, schema: dict[str, Any], types: dict[str, Any]) -> Any:
    fact: dict[str, Any] = {"type": _type(specification, schema, types)}
    if required:
        fact["required"] = True
    if specification.get("secret"):
        fact["secret"] = True
    if specification.get("willReplaceOnChanges"):
        fact["replace"] = True
    if environment := specification.get("defaultInfo", {}).get("environment"):
        fact["environment"] = environment
    return fact


def _type(specification: dict[str, Any], schema: dict[str, Any], types: dict[str, Any]) -> str:
    """One of `string`, `[string]` (list), `{string}` (map), `@Name` (an object in `types`)."""
    if reference := specification.get("$ref"):
        key = reference.removeprefix("#/types/")
        name = str(key.rsplit(":", 1)[-1])
        if name not in types:
            types[name] = {}
            types[name] = _properties(schema["types"][key], schema, types)
        return f"@{name}"
    if specification["type"] == "array":
        return f"[{_type(specification['items'], schema, types)}]"
    if specification["type"] == "object":
        return f"{{{_type(specification.get('additionalProperties', {'type': 'string'}), schema, types)}}}"
    return str(specification["type"])


def render(facts: dict[str, Any]) -> str:
    """JSON with one property a line, which makes a provider upgrade readable as a diff."""
    lines: list[str] = []
    for section, members in facts.items():
        lines.append(f' "{section}": {{')
        for name, member in members.items():
            if section == "config":
                lines.append(f"  {json.dumps(name)}: {json.dumps(member)},")
                continue
            lines.append(f"  {json.dumps(name)}: {{")
            lines += [f"   {json.dumps(key)}: {json.dumps(value)}," for key, value in member.items()]
            lines[-1] = lines[-1].removesuffix(",")
            lines.append("  },")
        lines[-1] = lines[-1].removesuffix(",")
        lines.append(" },")
    lines[-1] = lines[-1].removesuffix(",")
    return "\n".join(["{", *lines, "}", ""])


def main() -> None:
    """Write the facts of the schema named on the command line."""
    schema = json.loads(Path(sys.argv[1]).read_text())
    target = Path(__file__).parent / "schema" / f"{schema['name']}.json"
    target.write_text(render(distill(schema)))
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
