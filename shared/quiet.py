"""Keep the libraries' warnings and progress bars from scrolling over a command's own output."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Silence what is not for the user; call it once, before the heavy imports of a command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    for name in ("bitsandbytes", "transformers", "flwr", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)
