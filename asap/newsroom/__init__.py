"""Newsroom: a small DGM4 that is drawn, not collected. Illustrated news pictures with captions, nine classes.

    from asap.newsroom import generate
    generate(Path("out/newsroom"), pairs=10_000, seed=1)

lexicon (words) -> grammar (captions and their manipulation) -> looks (who is where) -> pen, people, props, scenes
(drawing) -> tamper (faces manipulated) -> picture (one picture) -> captioner -> corpus (the folder).
`CORPUS_VERSION` names the annotations and pixels that a seed gives: it changes whenever they do.
"""

from asap.newsroom.corpus import CLASS_SHARES, CORPUS_VERSION, SPLITS, Summary, generate

__all__ = ["CLASS_SHARES", "CORPUS_VERSION", "SPLITS", "Summary", "generate"]
