"""Which parameters weight decay would harm."""

import re

from torch import nn

_TABLES = re.compile(
    r"""
      .*pos_?emb.* | .*positional_.* | .*position_embedding.* | .*_pos     # absolute positions
    | .*rel_pos.* | relative_position.* | (?:height|width)_rel | freqs     # relative and rotary ones
    | .*_tokens | latent | query | queries | probe   # what the model looks with
    | .*_bias | .*_biases                                                 # biases of attention, head by head
    """,
    re.VERBOSE,
)


def names_without_decay(model: nn.Module) -> set[str]:
    """Returns the names of parameters that weight decay would pull away from where they belong.

    They are biases and norms (at most one axis), tables of positions, tokens, queries and attention biases (by the
    names that open_clip 3.3.0 and timm 1.0.31 give them, whatever their axes), scales of layers, heads and logits (one
    axis that is longer than 1, unless it is the weight of a layer), and what a backbone declares itself, in its method
    `no_weight_decay`.
    """
    declared = set()
    for prefix, part in (("", model), ("trunk.", getattr(model, "trunk", None))):
        declares = getattr(part, "no_weight_decay", None)
        if callable(declares):
            declared |= {prefix + name for name in declares()}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1
        or name in declared
        or _TABLES.fullmatch(name.rpartition(".")[2])
        or (not name.endswith("weight") and parameter.numel() == max(parameter.shape))
    }
