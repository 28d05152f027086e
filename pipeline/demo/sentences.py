"""The demo's sentences: descriptions and prompts that clip-benchmark carries (licence MIT).

None of them was written for the demo's pictures, and no picture's name is used: the sentences are unpaired.
"""

import json
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cache_schema.errors import EnvironmentProblem

# Descriptions (CuPL, Pratt et al. 2022) are 12 of 20 sentences, prompts the rest.
_DESCRIPTION_SHARE = 0.6
_SHORTEST, _LONGEST = 20, 70
_MOST_PROMPTS_OF_A_SET = 600
_MAIN_SET = "imagenet1k"


def choose_sentences(num_sentences: int, *, seed: int) -> list[str]:
    """Returns `num_sentences` different sentences in a shuffled order that `seed` fixes.

    Long descriptions are left out, for speed alone.

    Raises:
        EnvironmentProblem: clip-benchmark is not installed.
    """
    rng = np.random.default_rng([seed, num_sentences])
    chosen = _draw(_descriptions(), round(num_sentences * _DESCRIPTION_SHARE), rng)
    for name, prompts in _prompts().items():
        if name != _MAIN_SET:
            chosen += _draw(prompts, _MOST_PROMPTS_OF_A_SET * num_sentences // 20_000, rng)
    chosen = list(dict.fromkeys(chosen))[:num_sentences]
    rest = sorted(set(_prompts()[_MAIN_SET]) - set(chosen))
    chosen += _draw(rest, num_sentences - len(chosen), rng)
    return [chosen[place] for place in rng.permutation(len(chosen))]


def _descriptions() -> list[str]:
    """Returns the written descriptions of a suitable length, sorted; the file mixes them with filled templates."""
    listed = json.loads((_folder() / "cupl_prompts.json").read_text(encoding="utf-8"))[_MAIN_SET]
    filled = {line.lower() for line in _prompts(listed)[_MAIN_SET]}
    lines = {" ".join(line.split()) for of_class in listed.values() for line in of_class}
    return sorted(line for line in lines if _SHORTEST <= len(line) <= _LONGEST and line.lower() not in filled)


def _prompts(main_classes: Collection[str] = ()) -> dict[str, list[str]]:
    """Returns evaluation set -> its class names in its templates, sorted; the main set's may be given."""
    classes = json.loads((_folder() / "en_classnames.json").read_text(encoding="utf-8"))
    templates = json.loads((_folder() / "en_zeroshot_classification_templates.json").read_text(encoding="utf-8"))
    return {
        name: sorted(
            {
                template.replace("{c}", class_name)
                for class_name in class_names
                for template in templates.get(name, templates[_MAIN_SET])
                if class_name
            }
        )
        for name, class_names in {**classes, **({_MAIN_SET: [*main_classes]} if main_classes else {})}.items()
    }


def _draw(lines: list[str], number: int, rng: np.random.Generator) -> list[str]:
    places = rng.choice(len(lines), min(number, len(lines)), replace=False)
    return [lines[place] for place in places]


def _folder() -> Path:
    found = find_spec("clip_benchmark")
    if found is None or found.origin is None:
        raise EnvironmentProblem(
            "the demo's sentences come from clip-benchmark, which is not installed: run `make setup`"
        )
    return Path(found.origin).parent / "datasets"
