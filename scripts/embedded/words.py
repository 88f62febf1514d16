"""Word vectors: the similarity of each token of CLIP's vocabulary to each concept, by WordNet.

A noun's features are its synsets' ancestors and the words that explain them; its similarity to a concept is the
cosine of the two. So "sorcerer", which is in no training prompt, is close to "wizard". The vectors are fixed:
training would move those of the words in the prompts away from the others.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scripts.embedded.vocabulary import CONCEPTS, Concept

Vector = dict[str, float]
Floats = npt.NDArray[np.float32]

DECAY = 0.75
"""An ancestor's weight for each step up the tree."""

GLOSS = 0.35
"""The weight of a word in the explanation, relative to 1 for the synset itself."""

SENSES = 3
"""The number of a word's senses that count; WordNet lists them by frequency."""

FLOOR, CEILING = 0.15, 0.5
"""Similarities up to the first value count as 0, from the second value on as 1."""


@dataclass
class Synset:
    """One meaning: its words, the meanings above it, and its explanation's words."""

    words: list[str]
    above: list[str] = field(default_factory=list)
    gloss: list[str] = field(default_factory=list)


class WordNet:
    """The nouns of WordNet's database files."""

    def __init__(self, folder: Path) -> None:
        self._synsets: dict[str, Synset] = {}
        self._senses: dict[str, list[str]] = {}
        for line in (folder / "data.noun").read_text().splitlines():
            if not line.startswith("  "):
                self._read(line)
        for line in (folder / "index.noun").read_text().splitlines():
            if not line.startswith("  "):
                lemma, _, count, *rest = line.split()
                self._senses[lemma.replace("_", " ")] = rest[-int(count) :]
        holders: Counter[str] = Counter()
        for offset in self._synsets:
            holders.update(self._features(offset))
        total = len(self._synsets)
        self._rarity = {name: math.log(total / count) / math.log(total) for name, count in holders.items()}

    def _read(self, line: str) -> None:
        data, _, gloss = line.partition(" | ")
        offset, _, _, count, *rest = data.split()
        words = [word.lower().replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
        pointers = rest[2 * int(count, 16) + 1 :]
        above = [pointers[at + 1] for at in range(0, len(pointers), 4) if pointers[at] in ("@", "@i")]
        definition = gloss.split('; "')[0]
        self._synsets[offset] = Synset(words, above, re.findall(r"[a-z]{3,}", definition.lower()))

    @cache  # noqa: B019 - one WordNet lives as long as the program
    def _features(self, offset: str) -> Vector:
        """The synset, its ancestors and its explanation, unweighted by rarity."""
        found: Vector = {}
        front, weight = [offset], 1.0
        while front:
            for one in front:
                found["=" + one] = max(found.get("=" + one, 0.0), weight)
            front = [up for one in front for up in self._synsets[one].above]
            weight *= DECAY
        synset = self._synsets[offset]
        for word in {*synset.gloss, *(part for name in synset.words for part in name.split())}:
            found["~" + word] = GLOSS
        return found

    def senses(self, word: str) -> list[Vector]:
        """The feature vectors, of length 1, of a word's first senses; empty if it is not a noun."""
        found = []
        for offset in self._senses.get(word, [])[:SENSES]:
            weighted = {name: value * self._rarity[name] for name, value in self._features(offset).items()}
            length = math.sqrt(sum(value * value for value in weighted.values()))
            found.append({name: value / length for name, value in weighted.items()})
        return found

    def __contains__(self, word: str) -> bool:
        return word in self._senses


def cosine(one: Vector, other: Vector) -> float:
    """The cosine of two vectors of length 1."""
    if len(other) < len(one):
        one, other = other, one
    return sum(value * other.get(name, 0.0) for name, value in one.items())


def singular(word: str) -> Iterable[str]:
    """A word, then the words whose plural it may be."""
    yield word
    for ending, instead in (("ies", "y"), ("ves", "f"), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            yield word.removesuffix(ending) + instead


def concept_senses(wordnet: WordNet, concepts: Sequence[Concept]) -> list[list[Vector]]:
    """The meaning of each concept: for each of its words, the sense closest to the concept's other words.

    "seal" alone could be wax; together with "sea lion" it is the animal.
    """
    found = []
    for concept in concepts:
        words = [word for word in (concept.name, concept.name.split()[-1], *concept.synonyms) if word in wordnet]
        chosen = []
        for word in dict.fromkeys(words):
            others = [sense for other in words if other != word for sense in wordnet.senses(other)]
            senses = wordnet.senses(word)
            scores = [
                max([cosine(sense, other) for other in others] or [0.0]) - 0.1 * rank
                for rank, sense in enumerate(senses)
            ]
            chosen.append(senses[int(np.argmax(scores))])
        found.append(chosen)
    return found


def similarities(wordnet: WordNet, words: Sequence[str], concepts: Sequence[Concept] = CONCEPTS) -> Floats:
    """The similarity of each word to each concept, (words, concepts) in [0, 1]; 1 for a concept's own words."""
    meanings = concept_senses(wordnet, concepts)
    own = defaultdict(set)
    for index, concept in enumerate(concepts):
        for word in (concept.name, *concept.synonyms):
            own[word].add(index)
    inverse: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for index, senses in enumerate(meanings):
        for number, sense in enumerate(senses):
            for name, value in sense.items():
                inverse[name].append((index, number, value))
    table = np.zeros((len(words), len(concepts)), np.float32)
    for row, word in enumerate(words):
        forms = [form for form in singular(word) if form in wordnet or form in own]
        if not forms:
            continue
        for rank, sense in enumerate(wordnet.senses(forms[0])):
            dots: dict[tuple[int, int], float] = defaultdict(float)
            for name, value in sense.items():
                for index, number, other in inverse.get(name, ()):
                    dots[index, number] += value * other
            for (index, _), dot in dots.items():
                near = (dot * (1 - 0.12 * rank) - FLOOR) / (CEILING - FLOOR)
                table[row, index] = max(table[row, index], min(near, 1.0))
        for form in forms:
            if form in own:
                table[row] *= 0.3
                for index in own[form]:
                    table[row, index] = 1
                break
    return table
