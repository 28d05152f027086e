"""Builds tiny dual encoders of transformers with seeded weights, saved in folders with all they need, for tests."""

import json
from pathlib import Path
from typing import Any

SENTENCES = [
    "a photo of a cat",
    "two dogs on a hill",
    "snow in the night",
    "a red bus late",
    "0123456789",
    "quick brown fox",
]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


def make_tiny_hf(folder: Path, family: str = "clip", *, seed: int = 0, **text: Any) -> Path:
    """Saves a tiny model of `family`, its tokenizer and its image processor; `hf:{folder}` is then a teacher."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = {"clip": _clip_tokenizer, "metaclip_2": _clip_tokenizer, "siglip": _siglip_tokenizer}.get(
        family, _bert_tokenizer
    )(folder)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(family, {**_text(family, tokenizer), **text})
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim >= 2:
                    # Larger than a fresh model's, so that different inputs differ in feature.
                    value.copy_(torch.randn(value.shape) * 2 / value[0].numel() ** 0.5)
                elif "logit" in name or "temperature" in name:
                    value.fill_({"logit_scale": 2.5, "logit_bias": -7.5, "temperature": 0.05}[name])
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESS[family]))
    return folder


_RGB = {
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
}
_CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    **_RGB,
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "resample": 3,
    "do_convert_rgb": True,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_normalize": True,
}
PREPROCESS: dict[str, dict[str, Any]] = {
    "clip": _CLIP,
    "metaclip_2": _CLIP,
    "siglip": {
        "image_processor_type": "SiglipImageProcessor",
        **_RGB,
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 3,
        "do_normalize": True,
    },
    # As the published ALIGN has it: squeezed, then cropped, and scaled to -1 … 1 in one step.
    "align": {
        "image_processor_type": "EfficientNetImageProcessor",
        **_RGB,
        "do_resize": True,
        "size": {"height": 38, "width": 38},
        "resample": 2,
        "do_normalize": False,
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "include_top": False,
    },
    # As the published one has it, from before there were image processors.
    "chinese_clip": {
        "feature_extractor_type": "ChineseCLIPFeatureExtractor",
        **{name: value for name, value in _CLIP.items() if name != "image_processor_type"},
        "size": {"height": 32, "width": 32},
    },
}
"""Family -> content of preprocessor_config.json, spelt as published ones are."""


def _model(family: str, text: dict[str, Any]) -> Any:
    import transformers as hf

    if family == "clip":
        config = hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
        return hf.CLIPModel(config)
    if family == "metaclip_2":
        return hf.MetaClip2Model(hf.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=16))
    if family == "siglip":
        return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=VISION))
    if family == "chinese_clip":
        return hf.ChineseCLIPModel(hf.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
    blocks = {"in_channels": [32, 8], "out_channels": [8, 16], "kernel_sizes": [3, 3], "strides": [2, 2]}
    blocks |= {"num_block_repeats": [1, 1], "expand_ratios": [1, 2], "depthwise_padding": []}
    vision = {**blocks, "image_size": 32, "width_coefficient": 1.0, "depth_coefficient": 1.0, "depth_divisor": 8}
    vision |= {"hidden_dim": 64, "dropout_rate": 0.0, "drop_connect_rate": 0.0, "squeeze_expansion_ratio": 0.25}
    return hf.AlignModel(hf.AlignConfig(text_config=text, vision_config=vision, projection_dim=16))


def _text(family: str, tokenizer: Any) -> dict[str, Any]:
    size = {**TOWER, "vocab_size": len(tokenizer)}
    if family in ("clip", "metaclip_2"):
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        return {**size, "max_position_embeddings": 77, "pad_token_id": tokenizer.pad_token_id, **special}
    if family == "siglip":
        return {**size, "max_position_embeddings": 64}
    return {**size, "max_position_embeddings": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _letters() -> list[str]:
    return sorted(
        {letter for sentence in SENTENCES for letter in sentence if letter != " "} | set("abcdefghijklmnopqrstuvwxyz")
    )


def _clip_tokenizer(folder: Path) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *_letters(), *(f"##{letter}" for letter in _letters())]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=512)


def _siglip_tokenizer(folder: Path) -> Any:
    import sentencepiece
    from transformers import SiglipTokenizer

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        character_coverage=1.0,
        add_dummy_prefix=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    (folder / "spiece.vocab").unlink()
    # As the published ones: the text tower is not told of padding.
    return SiglipTokenizer(str(folder / "spiece.model"), model_input_names=["input_ids"])
