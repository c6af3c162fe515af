"""Newsroom: a small DGM4 that is drawn, not collected. Illustrated news pictures with captions, in nine classes.

    from asap.newsroom import generate
    generate(Path("out/newsroom"), pairs=10_000, seed=1)

In reading order:

    lexicon.py    the words: scenes, moods, props, colors, names
    grammar.py    captions, and their manipulation
    looks.py      the plan of a picture: people, poses, boxes
    pen.py        shapes in the coordinates of a body
    people.py     a person, drawn
    props.py      the objects that people hold, drawn
    scenes.py     backgrounds, drawn
    tamper.py     manipulated faces
    picture.py    a plan becomes a picture
    captioner.py  the caption of a picture, made from the picture alone
    corpus.py     the corpus folder, drawn by several processes
    sheet.py      a contact sheet of a corpus
    captioner_model.py  a small captioner that is trained on a corpus

`CORPUS_VERSION` names the annotations and pixels that a seed gives. It changes whenever they do.
"""

from asap.newsroom.corpus import CLASS_SHARES, CORPUS_VERSION, SPLITS, Summary, generate

__all__ = ["CLASS_SHARES", "CORPUS_VERSION", "SPLITS", "Summary", "generate"]
