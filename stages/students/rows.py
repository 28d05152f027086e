"""Whether the pictures of one training pass share anything."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_RANDOM_LAYERS = (nn.RReLU, nn.FractionalMaxPool2d)


def rows_share_nothing(model: nn.Module) -> bool:
    """Returns whether, in training mode, a picture's feature does not depend on the pictures that pass with it.

    False where some layer has statistics of the batch, or draws at random (one generator serves all rows of a pass, so
    a row's draw depends on its place). Layers are recognised by what torch, timm 1.0.31 and open_clip 3.3.0 write into
    them, whatever their class: batch statistics have buffers called `running_…`, and what drops something keeps its
    probability under a name with `drop` in it, or under `p` or `prob` in a class with `Drop` in its name.
    A rate that no layer follows counts too: False is only slower.
    """
    return not any(_has_batch_statistics(module) or _draws(module) for module in model.modules())


def _has_batch_statistics(module: nn.Module) -> bool:
    if type(module).__name__.startswith("Frozen"):
        return False
    running = (buffer for name, buffer in module.named_buffers(recurse=False) if name.startswith("running_"))
    return isinstance(module, _BatchNorm) or any(buffer is not None for buffer in running)


def _draws(module: nn.Module) -> bool:
    names = ("p", "prob") if "drop" in type(module).__name__.lower() else ()
    rates = [value for name, value in vars(module).items() if "drop" in name.lower() or name in names]
    if any(isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0 for rate in rates):
        return True
    # timm's rotary positions may be moved and scaled at random while they are trained.
    return isinstance(module, _RANDOM_LAYERS) or bool(getattr(module, "aug_active", False))
