"""The demo's pictures."""

import io
from collections import Counter

import numpy as np
from PIL import Image

from pipeline.demo.classes import CLASS_NAMES, TEMPLATES, label_of, prompts_of
from pipeline.demo.pictures import draw, draw_all, list_emoji


def test_every_base_emoji_is_listed_once_in_one_of_nine_groups() -> None:
    emoji = list_emoji()

    assert len({one.code for one in emoji}) == len(emoji) == 1_898
    assert Counter(one.group for one in emoji).keys() == CLASS_NAMES.keys()


def test_a_picture_is_an_rgb_drawing_on_white() -> None:
    banana = next(one for one in list_emoji() if one.name == "banana")

    drawn = Image.open(io.BytesIO(draw(banana)))

    pixels = np.asarray(drawn)
    assert (drawn.format, drawn.mode, drawn.size) == ("JPEG", "RGB", (224, 224))
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] > 250).all()
    yellow = (pixels[..., 0] > 200) & (pixels[..., 1] > 150) & (pixels[..., 2] < 120)
    assert yellow.mean() > 0.05


def test_pictures_come_in_the_order_asked_for() -> None:
    emoji = list_emoji()[:70]

    assert list(draw_all(emoji)) == [draw(one) for one in emoji]


def test_labels_follow_the_order_of_the_class_names_and_fill_the_templates() -> None:
    for label, (group, name) in enumerate(CLASS_NAMES.items()):
        assert label_of(group) == label
        assert all(name in prompt for prompt in prompts_of(label))
        assert len(set(prompts_of(label))) == len(TEMPLATES)
