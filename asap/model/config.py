"""The configuration of a model: frozen, and checked when it is built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from asap.errors import ConfigError
from asap.labels import LABEL_SETS


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of an ASAP or HAMMER model.

    The defaults are those of the published model (paper, implementation details). `tiny` is a size for a CPU.
    """

    variant: Literal["asap", "hammer"] = "asap"
    """The architecture: `asap` is `hammer` with image self-attention, fusion scalar, patch and explanation heads."""
    image_size: int = 256
    """Side of the square input, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    patch_embedding: Literal["linear", "conv"] = "linear"
    """The patch embedding: `linear` as published, or `conv`, four halving convolutions that learn local traces from
    random weights."""
    width: int = 768
    """Channels of the tokens, the same in all three encoders."""
    heads: int = 12
    image_layers: int = 12
    image_mlp_width: int = 3072
    text_layers: int = 6
    fusion_layers: int = 6
    text_mlp_width: int = 3072
    text_norm: Literal["post", "pre"] = "post"
    """The position of LayerNorm in the text and fusion layers.

    `post` normalizes after each residual sum, as BERT and the published model do. `pre` normalizes the input of each
    branch. From random weights `post` collapsed: every word of a text came out of the fusion as the same summary of the
    image.
    """
    type_heads: Literal["joint", "apart"] = "joint"
    """The inputs of the type logits.

    `joint`, as published: all four read the fused [CLS] and the aggregate. `apart`: the image types read the aggregate
    and the text types the fused [CLS], so that neither learns from what concerns the other.
    """
    text_heads: Literal["mlp", "linear"] = "mlp"
    """The form of the token head, and of the text types' own head if `type_heads` is `apart`.

    `mlp` is the published form. `linear` is one layer; with it, a text side without pretraining learns words from half
    as many texts.
    """
    box_gate: Literal["none", "presence"] = "none"
    """The gate of the predicted box.

    `none`, as published: every pair has a box. `presence`: one more head predicts whether the picture has a manipulated
    face, and the box is zero where it has none (the published evaluation reads a zero box as no box).
    """
    vocab_size: int = 30522
    max_positions: int = 512
    """Rows of the position table of the text encoder, in tokens."""
    type_vocab_size: int = 2
    max_words: int = 50
    """Words of a text that one pass analyzes; a longer text is analyzed in several passes."""
    max_tokens: int = 128
    """Tokens of one pass, [CLS] included."""
    embed_dim: int = 256
    """Channels of the contrastive features."""
    dropout: float = 0.1
    """Dropout probability in the text and fusion layers; the image encoder has none, as published."""
    layer_norm_eps: float = 1e-12
    """Epsilon of LayerNorm in the text and fusion layers (BERT's). The image encoder uses 1e-6 (timm's)."""
    label_set: Literal["dgm4", "samm", "dgm4+"] = "dgm4"
    """The label set that the model was trained on; see `asap.labels`. A folder without this field means DGM4."""

    def __post_init__(self) -> None:
        # A bool is an int in Python, and no size may be one.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, int) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{field.name} {value!r} is not a whole number of at least 1")
        if self.variant not in ("asap", "hammer"):
            raise ConfigError(f"variant {self.variant!r} is unknown; 'asap' and 'hammer' are known")
        if self.patch_embedding not in ("linear", "conv"):
            raise ConfigError(f"patch_embedding {self.patch_embedding!r} is unknown; 'linear' and 'conv' are known")
        if self.text_norm not in ("post", "pre"):
            raise ConfigError(f"text_norm {self.text_norm!r} is unknown; 'post' and 'pre' are known")
        if self.type_heads not in ("joint", "apart"):
            raise ConfigError(f"type_heads {self.type_heads!r} is unknown; 'joint' and 'apart' are known")
        if self.text_heads not in ("mlp", "linear"):
            raise ConfigError(f"text_heads {self.text_heads!r} is unknown; 'mlp' and 'linear' are known")
        if self.box_gate not in ("none", "presence"):
            raise ConfigError(f"box_gate {self.box_gate!r} is unknown; 'none' and 'presence' are known")
        if self.label_set not in LABEL_SETS:
            raise ConfigError(f"label_set {self.label_set!r} is unknown; {', '.join(LABEL_SETS)} are known")
        # Sizes that have to fit each other.
        if self.image_size % self.patch_size:
            below = self.image_size // self.patch_size * self.patch_size
            near = " and ".join(str(size) for size in (below, below + self.patch_size) if size)
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; {near} are"
            )
        if self.patch_embedding == "conv" and self.patch_size != 16:
            raise ConfigError(f"patch_size {self.patch_size} does not fit the conv embedding, whose stride is 16")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.max_tokens > self.max_positions:
            raise ConfigError(
                f"max_tokens {self.max_tokens} exceeds the position table, max_positions {self.max_positions}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout {self.dropout} is not a probability below 1")

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """Return the published size: ViT-B/16 at 256 px, and BERT base as 6 text and 6 fusion layers."""
        return cls.from_dict(changes)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Return a size that trains on a CPU: conv stem, 128 px, width 192, a few million parameters."""
        shape: dict[str, Any] = {
            "image_size": 128, "patch_embedding": "conv", "width": 192, "heads": 6, "image_layers": 4,
            "image_mlp_width": 768, "text_layers": 1, "fusion_layers": 2, "text_mlp_width": 384, "text_norm": "pre",
            "text_heads": "linear", "dropout": 0.0, "vocab_size": 4000, "max_positions": 64, "max_tokens": 64,
            "embed_dim": 128,
        }  # fmt: skip
        return cls.from_dict(shape | changes)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Return the preset with this name: `base` or `tiny`. Raises `ConfigError` for another name."""
        if name not in ("base", "tiny"):
            raise ConfigError(f"preset {name!r} is unknown; 'base' and 'tiny' are known")
        return cls.base(**changes) if name == "base" else cls.tiny(**changes)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Build a configuration from the output of `dataclasses.asdict`. Raises `ConfigError` for an unknown field."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ConfigError(f"unknown model settings {unknown}; known are {sorted(known)}")
        return cls(**fields)

    @property
    def patches_per_side(self) -> int:
        """Number of patches along one side of the image."""
        return self.image_size // self.patch_size
