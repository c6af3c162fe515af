"""The API's reference at /docs: its OpenAPI document as one plain page that loads nothing from other hosts."""

from __future__ import annotations

import json
import shlex
from typing import Any

from jinja2 import Environment, PackageLoader

from serve.api.openapi import ERROR_EXAMPLE, success_of
from serve.errors import MEANINGS

_TEMPLATES = Environment(loader=PackageLoader("serve", "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def reference_page(openapi: dict[str, Any]) -> str:
    """Return an OpenAPI document as HTML."""
    schemas = openapi["components"]["schemas"]
    operations = [
        operation
        | {
            "path": path,
            "method": method.upper(),
            "anchor": f"{method}{path.replace('/', '-')}",
            "commands": list(_commands(method, path, operation, schemas)),
            "success": success_of(operation),
        }
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    return _TEMPLATES.get_template("reference.html.j2").render(
        openapi=openapi,
        operations=operations,
        schemas=schemas,
        error=ERROR_EXAMPLE,
        meanings=[(code, *meaning.split(": ", 1)) for code, meaning in MEANINGS.items()],
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        name_of=_name_of,
    )


def _commands(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """Return a command of curl for each kind of body that an operation takes, or the only one."""
    command = ["curl", f"http://127.0.0.1:8000{path}"]
    # A server without keys needs none, and its document says so by an empty alternative.
    if operation.get("security") and {} not in operation["security"]:
        command.append('-H "Authorization: Bearer $ASAP_KEY"')
    commands = []
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        example = schemas[_name_of(content["schema"])]["examples"][0]
        if kind == "application/json":
            sent = [
                "-H",
                shlex.quote(f"Content-Type: {kind}"),
                "-d",
                shlex.quote(json.dumps(example, ensure_ascii=False)),
            ]
        else:
            sent = [part for name, value in example.items() for part in ("-F", shlex.quote(f"{name}={value}"))]
        commands.append(" ".join([*command, *sent]))
    without_body = [*command, "-X", "POST"] if method == "post" else command  # curl sends a body as POST by itself
    return commands or [" ".join(without_body)]


def _name_of(schema: dict[str, Any]) -> str:
    """Return the name of the schema to which another one refers, or an empty text."""
    return str(schema.get("$ref", "")).rpartition("/")[2]
