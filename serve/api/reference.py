"""The API's reference at /docs: its OpenAPI document as one plain page that loads nothing from other hosts."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader

_TEMPLATES = Environment(loader=PackageLoader("serve", "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def reference_page(openapi: dict[str, Any]) -> str:
    """Return an OpenAPI document as HTML."""
    operations = [
        {"path": path, "method": method.upper(), "anchor": f"{method}{path.replace('/', '-')}"} | operation
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    return _TEMPLATES.get_template("reference.html.j2").render(
        openapi=openapi,
        operations=operations,
        schemas=openapi["components"]["schemas"],
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        name_of=lambda schema: schema.get("$ref", "").rpartition("/")[2],
    )
