"""Teachers for the benchmarks. Their speed is that of the real ones; what they say of a picture does not matter."""

import json
from pathlib import Path
from urllib.parse import quote

STUB = "python:tests.corpora.stub_teacher:make?dim=64"


def composed(folder: Path) -> str:
    """Returns the specification of the demo's composed teacher, its map fitted on a few pictures only."""
    from pipeline.demo.data import DataConfig, DemoData, make_data

    make_data(folder, DataConfig(num_pictures=40, num_sentences=50), progress=lambda *_: None)
    return f"python:pipeline.demo.teacher:make?alignment={quote(str(DemoData(folder).alignment.absolute()))}"


def save_open_clip(folder: Path, architecture: str) -> Path:
    """Writes an open_clip directory with seeded random weights, and returns its weights file."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model(architecture)
    folder.mkdir(parents=True)
    visual = open_clip.get_model_preprocess_cfg(model)
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": visual}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = folder / "open_clip_model.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    return weights


def open_clip_random(folder: Path, architecture: str = "ViT-B-32") -> str:
    """Returns the specification of an open_clip model of random weights, saved in `folder`."""
    return f"open_clip:local-dir:{save_open_clip(folder, architecture).parent.absolute()}"
