"""Photographs that come with packages of the tests, read from where those are installed."""

from importlib.util import find_spec
from pathlib import Path

_WITH_PACKAGE = {
    "skimage": (
        "data/astronaut.png", "data/brick.png", "data/chelsea.png", "data/clock_motion.png", "data/coffee.png",
        "data/coins.png", "data/grass.png", "data/gravel.png", "data/motorcycle_left.png", "data/motorcycle_right.png",
        "data/retina.jpg", "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}  # fmt: skip
CAPTIONS = {
    "astronaut": "Eileen Collins in her orange flight suit before a model of the shuttle.",
    "brick": "A wall of old bricks.",
    "chelsea": "A cat looks into the camera.",
    "clock_motion": "A clock on a wall, photographed by a camera that moved.",
    "coffee": "A cup of coffee on a wooden table beside a spoon.",
    "coins": "Roman coins from Pompeii, arranged in rows.",
    "grass": "A lawn, seen from above.",
    "gravel": "A path of gravel.",
    "motorcycle_left": "A motorcycle stands in a garage among tools and tires.",
    "motorcycle_right": "A motorcycle stands in a garage, seen from the right.",
    "retina": "The retina of a patient, imaged by a fundus camera.",
    "rocket": "A Falcon 9 lifts off from Cape Canaveral with a satellite.",
    "china": "The pavilion of the Summer Palace in Beijing.",
    "flower": "A dahlia in full bloom in the botanical garden.",
    "grace_hopper": "Rear Admiral Grace Hopper in uniform in front of the American flag.",
}


def photographs() -> dict[str, Path]:
    """Return fifteen photographs by name: people, an animal, things and places."""
    found = {}
    for package, names in _WITH_PACKAGE.items():
        spec = find_spec(package)
        assert spec is not None, f"{package} is not installed"
        for name in names:
            found[Path(name).stem] = Path(str(spec.origin)).parent / name
    return found
