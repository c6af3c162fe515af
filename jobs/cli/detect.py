"""`asap detect`: detect manipulation in one pair, on this machine or at a server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from asap.errors import AsapError, ConfigError, InputError, TextInvalid, TextMissing, TextUnreadable
from asap.preprocessing.words import MIN_TEXT_READ, check_text
from jobs.cli.options import DEVICE_HELP, MODEL_HELP, check_device

if TYPE_CHECKING:
    from asap.finding import Finding
    from asap.preprocessing.images import PreparedImage


def detect(
    image: Annotated[str, typer.Argument(help="The picture: a path or s3://.")],
    text: Annotated[str | None, typer.Option(help="The text that accompanies the picture.")] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "demo",
    min_text_read: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the text that the model must be able to read (a server has its own)."
        ),
    ] = MIN_TEXT_READ,
    as_json: Annotated[bool, typer.Option("--json", help="Print the finding as JSON.")] = False,
    save: Annotated[Path | None, typer.Option(help="Save the picture with the evidence drawn on it.")] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    url: Annotated[
        str | None,
        typer.Option(help="URL of a running `asap serve`. The pair is sent there; the key is read from ASAP_KEY."),
    ] = None,
) -> None:
    """Detect manipulation in one pair: verdict, types, face and words."""
    from asap.preprocessing.images import prepare_image
    from asap.weights.model_folder import check_folder, model_config

    if save is not None:
        _check_save_path(save)
    answer: dict[str, Any] | None = None
    if url is not None:
        source = _read_picture(image)
        try:
            check_text(text)
        except InputError as error:
            raise _naming_the_image(error, image) from error
        answer, finding = _detect_at_server(url, source, text)
    else:
        # What the model need not be loaded for comes first: loading takes seconds.
        check_device(device)
        folder = check_folder(model)
        source = _read_picture(image)
        picture = None
        try:
            picture = prepare_image(source, model_config(folder).image_size)
            check_text(text)
        except InputError as error:
            if not as_json:
                raise _naming_the_image(error, image) from error
            finding = _failure(folder, picture, error)
        else:
            from asap.predictor import Predictor

            predictor = Predictor.from_folder(folder, device, min_text_read=min_text_read)
            finding = predictor.predict_prepared([picture], [text])[0]
    # JSON reports a failed pair too, in its error fields, before the command fails.
    if as_json:
        typer.echo(json.dumps(finding_json(finding, answer), ensure_ascii=False, indent=2))
    if finding.error is not None:
        raise _naming_the_image(finding.error, image)
    if not as_json:
        from jobs.cli.display import show_finding

        Console().print(show_finding(finding, text))
    if save is not None:
        from asap.preprocessing.images import decode_image
        from asap.render import draw_evidence

        draw_evidence(decode_image(source).image, finding, text).save(save)


def finding_json(finding: Finding, answer: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a finding as JSON fields: the API's response, then the columns of result rows that it lacks.

    A pair that failed has null for what it lacks. A server returns no `raw_box_px` and no `word_scores`.

    Args:
        finding: The finding.
        answer: The response of the server that it came from; None if it was made here.
    """
    from serve.schemas import Detection, detection

    columns = finding.to_dict()
    if answer is None and finding.error is None:
        answer = detection("", finding, {}, None).model_dump(mode="json") | {"id": None}
    elif answer is None:
        size = {"sha256": columns["image_sha256"], "width": columns["width"], "height": columns["height"]}
        answer = {name: columns.get(name) for name in Detection.model_fields} | {"input": size, "timings": {}}
    names = ("flagged_types", "raw_box_px", "word_scores", "error_code", "error_detail")
    return answer | {name: columns[name] for name in names}


def _check_save_path(save: Path) -> None:
    from PIL import Image

    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE}
    if save.suffix.lower() not in suffixes:
        raise ConfigError(f"--save {str(save)!r} has no suffix of a picture format. Use .png or .jpg.")
    if not save.absolute().parent.is_dir():
        raise ConfigError(f"--save {str(save)!r} is in a folder that does not exist. Create it, or choose another.")


def _failure(folder: Path, picture: PreparedImage | None, error: InputError) -> Finding:
    """Return the finding of a pair that cannot be read, as the model of this folder would return it.

    Args:
        folder: The model folder.
        picture: The picture of the pair; None if it is what cannot be read.
        error: The reason.
    """
    from asap.finding import Finding
    from asap.limits import NO_FAMILIARITY, limits_sentences
    from asap.policy import Policy
    from asap.weights.model_folder import familiarity_id, model_id, read_limits, weights_sha256

    weights = weights_sha256(folder)
    name, familiarity = model_id(folder, weights), familiarity_id(folder, weights)
    limits = limits_sentences(read_limits(folder), name)
    return Finding(
        model_id=name,
        policy_id=Policy.load(folder / "policy.json").policy_id,
        familiarity_id=familiarity,
        limits=limits if familiarity else f"{limits} {NO_FAMILIARITY}",
        width=picture.width if picture else None,
        height=picture.height if picture else None,
        image_sha256=picture.sha256 if picture else None,
        warnings=list(picture.warnings) if picture else [],
        error=error,
    )


def _read_picture(image: str) -> bytes | Path:
    return _read_object(image) if image.startswith("s3://") else Path(image)


def _read_object(image: str) -> bytes:
    """Read an s3:// picture. Raises if it is larger than the decoder accepts."""
    from asap.preprocessing.images import DEFAULT_LIMITS
    from asap.storage.fetch import FetchSettings, fetch
    from asap.storage.location import Location

    return fetch(Location.parse(image).uri, DEFAULT_LIMITS.max_bytes, FetchSettings()).data


def _detect_at_server(url: str, source: bytes | Path, text: str | None) -> tuple[dict[str, Any], Finding]:
    """Send the pair to a running `asap serve`; return its answer as JSON fields and as a finding."""
    from serve.client import Client, finding_of

    with Client(url, os.environ.get("ASAP_KEY")) as client:
        answer = client.detect(source, text or "")
    return answer.model_dump(mode="json"), finding_of(answer)


def _naming_the_image(error: AsapError, image: str) -> AsapError:
    """Return the error of a pair, prefixed with its image if the image is at fault and is not named yet."""
    if isinstance(error, TextMissing):
        return ConfigError(f"{error}. Give --text.")
    if isinstance(error, TextInvalid | TextUnreadable) or image in str(error):
        return error
    return ConfigError(f"{image}: {error}")
