"""Random prompts in the style of users, each with its concept."""

from collections.abc import Sequence

import numpy as np

from scripts.embedded.vocabulary import CONCEPTS
from scripts.embedded.words import singular

NOTHING = len(CONCEPTS)
"""The class of a prompt without a known concept: the image is kept."""

_OPENINGS = (
    *(
        "a ",
        "a ",
        "the ",
        "my ",
        "one ",
        "a photo of a ",
        "a picture of a ",
        "an illustration of a ",
        "a painting of a ",
    ),
    *(
        "a 3d render of a ",
        "an icon of a ",
        "a drawing of a ",
        "photo of ",
        "portrait of a ",
        "close-up of a ",
        "an emoji of a ",
    ),
)
_ADJECTIVES = (
    *("cute", "adorable", "red", "blue", "green", "golden", "tiny", "giant", "happy", "sad", "old", "young", "fluffy"),
    *("beautiful", "majestic", "funny", "cartoon", "realistic", "futuristic", "ancient", "magical", "dark", "glowing"),
    *("colourful", "white", "black", "yellow", "purple", "pink", "wooden", "small", "big", "shiny", "angry", "sleepy"),
)
_STYLES = (
    *(
        "detailed",
        "highly detailed",
        "fantasy",
        "cute",
        "adorable",
        "pixar",
        "disney",
        "8k",
        "4k",
        "hdr",
        "masterpiece",
    ),
    *("best quality", "trending on artstation", "digital art", "watercolor", "oil painting", "pencil sketch", "anime"),
    *(
        "cinematic lighting",
        "soft light",
        "studio light",
        "sharp focus",
        "photorealistic",
        "unreal engine",
        "octane render",
    ),
    *("3d render", "concept art", "vivid colors", "pastel colors", "minimalist", "low poly", "pixel art", "vector art"),
    *(
        "lord of the rings",
        "star wars",
        "cyberpunk",
        "steampunk",
        "art nouveau",
        "white background",
        "bokeh",
        "in the forest",
    ),
    *("by greg rutkowski", "intricate", "elegant", "epic", "dramatic", "smooth", "award winning", "professional photo"),
)
_LINKS = (
    *(
        " with a ",
        " with ",
        " on a ",
        " in a ",
        " holding a ",
        " wearing a ",
        " next to a ",
        " in front of a ",
        " and a ",
    ),
    *(" riding a ", " eating a ", " under a ", " near a ", " like a "),
)
_PLACES = (
    *(" in the forest", " on the beach", " at night", " in the city", " on a table", " in the snow", " on a street"),
    *(
        " in space",
        " under water",
        " in the mountains",
        " on grass",
        " at sunset",
        " in the rain",
        " on a white background",
    ),
)


class Prompts:
    """Random prompts. Half of the time a concept's word is its name.

    A prompt's concept is the last one in the first part that has one: it is the wizard in "dog wizard, gandalf" and the
    cat in "a cat with a hat, on a table".
    """

    def __init__(self, doubles: float = 0.08) -> None:
        """`doubles` is the share of prompts with another concept's word in front: "dog wizard"."""
        self._doubles = doubles
        self._words = [(concept.name, *concept.synonyms) for concept in CONCEPTS]
        single = {word for words in self._words for word in words if " " not in word}
        # "lord of the rings" alone means a ring; after "dog wizard" it does not.
        self._idle = [
            style for style in _STYLES if not single & {form for word in style.split() for form in singular(word)}
        ]

    def word(self, rng: np.random.Generator, concept: int) -> str:
        """A random word for a concept, sometimes in the plural."""
        words = self._words[concept]
        word = words[0] if len(words) == 1 or rng.random() < 0.5 else words[int(rng.integers(1, len(words)))]
        return word + "s" if rng.random() < 0.06 and not word.endswith("s") else word

    def plain(self, rng: np.random.Generator, concept: int) -> str:
        """A prompt with only a word for `concept`; empty for `NOTHING`."""
        if concept == NOTHING:
            return ""
        opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))] if rng.random() < 0.5 else ""
        return opening + self.word(rng, concept)

    def draw(self, rng: np.random.Generator, concept: int) -> str:
        """A prompt for `concept`, or for `NOTHING`."""
        if concept == NOTHING:
            return ", ".join(_some(rng, self._idle, int(rng.integers(0, 5))))
        text = self.word(rng, concept)
        if rng.random() < self._doubles:
            text = self.word(rng, int(rng.integers(NOTHING))) + " " + text
        if rng.random() < 0.35:
            text = " ".join([*_some(rng, _ADJECTIVES, int(rng.integers(1, 3))), text])
        if rng.random() < 0.5:
            text = _OPENINGS[int(rng.integers(len(_OPENINGS)))] + text
        if rng.random() < 0.12:
            text += _LINKS[int(rng.integers(len(_LINKS)))] + self.word(rng, int(rng.integers(NOTHING)))
        elif rng.random() < 0.15:
            text += _PLACES[int(rng.integers(len(_PLACES)))]
        if rng.random() < 0.55:
            parts = _some(rng, _STYLES, int(rng.integers(1, 10)))
            if rng.random() < 0.15:
                parts.insert(int(rng.integers(len(parts) + 1)), self.word(rng, int(rng.integers(NOTHING))))
            text = ", ".join([text, *parts])
        if rng.random() < 0.1:
            text = ", ".join([*_some(rng, self._idle, int(rng.integers(1, 3))), text])
        return text.title() if rng.random() < 0.05 else text


def _some(rng: np.random.Generator, words: Sequence[str], count: int) -> list[str]:
    return [words[int(index)] for index in rng.integers(len(words), size=count)]
