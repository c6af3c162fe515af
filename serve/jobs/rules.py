"""The check of what a request names, against what the settings allow its key."""

from __future__ import annotations

from collections.abc import Mapping

from asap.storage.prefixes import is_below
from serve.errors import Refused
from serve.job_schemas import JobLimits, JobRequest
from serve.settings import ANY_KEY, JobRules, JobSettings

NOT_CONFIGURED = (
    "this server takes no jobs. Its operator allows them with the setting `jobs`, which names a folder for records "
    "and for each key the inputs and outputs that its jobs may name."
)
_SOURCES = (("caption_engine", "captioner"), ("explanation_engine", "explainer"))


def rules_of(settings: JobSettings | None, key_name: str | None) -> JobRules:
    """Return the rules of a key; None is the name of a caller without a key. Raises `Refused` (403) without rules."""
    if settings is None:
        raise Refused(403, "jobs_not_configured", NOT_CONFIGURED)
    keys: Mapping[str, JobRules] = settings.keys
    rules = keys.get(key_name or ANY_KEY, keys.get(ANY_KEY))
    if rules is None or not rules.inputs or not rules.outputs:
        caller = "callers without a key" if key_name is None else f"the key {key_name}"
        message = f"{caller} may submit no jobs: the setting `jobs` names no inputs and outputs for it."
        raise Refused(403, "jobs_not_configured", message)
    return rules


def limits_of(rules: JobRules) -> JobLimits:
    """Return rules as a response shows them: without models that are folders of the server's machines."""
    models = [model for model in rules.models if not model.startswith("/")]
    return JobLimits(
        inputs=list(rules.inputs), outputs=list(rules.outputs), models=models, max_under_way=rules.max_under_way
    )


def check_allowed(request: JobRequest, rules: JobRules) -> None:
    """Raise `Refused` (403), with the field, for a request that names what its key may not."""
    _check_below("input", request.input, rules.inputs)
    _check_below("out", request.out, rules.outputs)
    _check_model("model", request.model or "demo", rules)
    for engine, source in _SOURCES:
        named = getattr(request, source)
        if named is None:
            continue
        if getattr(request, engine) == "precomputed":
            _check_below(source, named, rules.inputs)
        else:
            _check_model(source, named, rules)


def _check_below(field: str, address: str, prefixes: tuple[str, ...]) -> None:
    if not is_below(address, prefixes):
        allowed = " or ".join(prefixes)
        message = f"{field} is not an address below {allowed}, or has '.', '..' or an empty part in its path."
        raise Refused(403, "job_not_allowed", message, param=field)


def _check_model(field: str, model: str, rules: JobRules) -> None:
    folders = [name for name in rules.models if name.endswith("/")]
    if model not in rules.models and not is_below(model, folders):
        message = f"{field} is not one that this key may use. GET /v1/limits lists those."
        raise Refused(403, "job_not_allowed", message, param=field)
