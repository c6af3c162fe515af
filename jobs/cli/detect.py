"""`asap detect`: detect manipulation in one pair, on this machine or at a server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from asap.errors import AsapError, ConfigError, TextInvalid, TextMissing, TextUnreadable
from asap.preprocessing.words import MIN_TEXT_READ
from jobs.cli.options import DEVICE_HELP, MODEL_HELP

if TYPE_CHECKING:
    from asap.finding import Finding


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
    if save is not None:
        _check_save_path(save)  # before the model runs
    source = _read_object(image) if image.startswith("s3://") else Path(image)
    if url is not None:
        fields, finding = _detect_at_server(url, source, text)
    else:
        from asap.finding import Pair
        from asap.predictor import Predictor

        finding = Predictor.from_folder(model, device, min_text_read=min_text_read).predict([Pair(source, text)])[0]
        fields = finding.to_dict()
    # JSON reports a failed pair too, in its error fields, before the command fails.
    if as_json:
        typer.echo(json.dumps(fields, ensure_ascii=False, indent=2))
    if finding.error is not None:
        raise _naming_the_image(finding.error, image)
    if not as_json:
        from jobs.cli.display import show_finding

        Console().print(show_finding(finding, text))
    if save is not None:
        from asap.preprocessing.images import decode_image
        from asap.render import draw_evidence

        draw_evidence(decode_image(source).image, finding, text).save(save)


def _check_save_path(save: Path) -> None:
    from PIL import Image

    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE}
    if save.suffix.lower() not in suffixes:
        raise ConfigError(f"--save {str(save)!r} has no suffix of a picture format. Use .png or .jpg.")
    if not save.absolute().parent.is_dir():
        raise ConfigError(f"--save {str(save)!r} is in a folder that does not exist. Create it, or choose another.")


def _read_object(image: str) -> bytes:
    """Read an s3:// picture. Raises if it is larger than the decoder accepts."""
    from asap.preprocessing.images import DEFAULT_LIMITS
    from asap.storage.fetch import FetchSettings, fetch
    from asap.storage.location import Location

    return fetch(Location.parse(image).uri, DEFAULT_LIMITS.max_bytes, FetchSettings()).data


def _detect_at_server(url: str, source: bytes | Path, text: str | None) -> tuple[dict[str, Any], Finding]:
    """Send the pair to a running `asap serve`; return its answer as JSON fields and as a finding."""
    from serve.client import Client, finding_of, read_image

    data = source if isinstance(source, bytes) else read_image(str(source))
    answer = Client(url, os.environ.get("ASAP_KEY")).detect(data, text or "")
    return answer, finding_of(answer)


def _naming_the_image(error: AsapError, image: str) -> AsapError:
    """Return the error of a pair, prefixed with its image if the image is at fault and is not named yet."""
    if isinstance(error, TextMissing):
        return ConfigError(f"{error}. Give --text.")
    if isinstance(error, TextInvalid | TextUnreadable) or image in str(error):
        return error
    return ConfigError(f"{image}: {error}")
