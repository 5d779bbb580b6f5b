"""Runs exported folders with the reference library and compares their outputs.

    python tests/export/reference.py FOLDER      # needs torch, transformers and peft

FOLDER holds ``expected.npz``, with ``ids`` and the outputs expected of each folder beside it; what
kind of export that is follows from its files.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from peft import PeftModel


def load(folder: pathlib.Path):
    """The model of an exported folder, in the class that its config names."""
    if (folder / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(load(folder / "base"), folder)
    config = json.loads((folder / "config.json").read_text())
    if "auto_map" in config:
        (auto,) = config["auto_map"]
        return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
    return getattr(transformers, config["architectures"][0]).from_pretrained(folder)


def main(root: pathlib.Path) -> int:
    """Compares all folders; the number of those that differ."""
    expected, wrong = np.load(root / "expected.npz"), 0
    ids = torch.tensor(expected["ids"]).long()
    for name in expected:
        if name == "ids":
            continue
        model = load(root / name).eval()
        with torch.no_grad():
            found = model(input_ids=ids)
        found = getattr(found, "logits", None) if "logits" in found else found.last_hidden_state
        error = float(np.abs(found.numpy() - expected[name]).max())
        print(f"{name}: {error:.1e}")
        wrong += not error < 1e-4
    return wrong


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
