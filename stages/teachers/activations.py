"""Finds the activations of a built model, which can differ from what its configuration says."""

import re
from typing import Any


def activations_in(module: Any) -> list[str]:
    """Returns the kinds of activation modules in `module`, sorted: "GELU", "QuickGELU", "GELU(tanh)", "ReLU" …"""
    found = set()
    for part in module.modules():
        name = type(part).__name__
        if re.search(r"GELU|SiLU|ReLU|Swish", name):
            approximate = getattr(part, "approximate", "none")
            found.add(name if approximate == "none" else f"{name}({approximate})")
    return sorted(found)
