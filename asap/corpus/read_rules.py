"""What to make of a corpus that is not as it should be; light, because settings are read where torch is not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asap.errors import ConfigError
from asap.labels import label_set

BadBox = Literal["boxless", "skip", "refuse"]
BadPosition = Literal["drop", "skip", "refuse"]


@dataclass(frozen=True, kw_only=True)
class ReadRules:
    """What to make of a corpus that is not as it should be. A row that is no record is refused always."""

    label_set: str = "dgm4"
    """Whose classes the rows have; the model's (`ModelConfig.label_set`)."""
    missing_images: float = 0.01
    """Share of a split's pairs whose picture may be missing: they are left out. Above it the split is refused."""
    bad_boxes: BadBox = "boxless"
    """Of a box that is missing, no box, or has no area inside the picture: `boxless` keeps the pair without box terms
    and patch labels (MGCA sees no patch marked, and an evaluation has no box that a prediction could meet); `skip`
    leaves it out; `refuse` stops."""
    stray_positions: BadPosition = "drop"
    """Of positions beyond the text: `drop` drops them, `skip` leaves the pair out, `refuse` stops."""

    def __post_init__(self) -> None:
        label_set(self.label_set)
        if not 0 <= self.missing_images <= 1:
            raise ConfigError(f"missing_images {self.missing_images} is not a share between 0 and 1")
        for name, known in (("bad_boxes", ("boxless", "skip", "refuse")),
                            ("stray_positions", ("drop", "skip", "refuse"))):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; {', '.join(known)} are known")


DEFAULT_RULES = ReadRules()
STRICT = ReadRules(missing_images=0, bad_boxes="refuse", stray_positions="refuse")
"""Everything that a report would have to tell of is refused."""
