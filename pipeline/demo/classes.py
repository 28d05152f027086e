"""The classes of the demo's evaluation set: the nine emoji groups, as prompts can name them.

A group such as `Objects` is a bag of things, so its class name lists some: words of Unicode's own subgroups, chosen
where the teacher names the pictures that are not held out best.
"""

CLASS_NAMES = {
    "Activities": "event, award medal, game, arts and crafts, celebration",
    "Animals & Nature": "mammal, bird, reptile, flower, plant, wild animal",
    "Flags": "flag, country flag, national flag",
    "Food & Drink": "fruit, vegetable, meal, drink, dish, food",
    "Objects": "clothing, music, phone, book, tool, medicine",
    "People & Body": "person, woman, man",
    "Smileys & Emotion": "heart, emotion, facial expression, smiley",
    "Symbols": "sign, arrow, symbol, button, zodiac sign, number",
    "Travel & Places": "vehicle, building, place, weather, clock",
}
"""Group -> class name. The place of a group, from 0, is its label."""

TEMPLATES = ("a drawing of {c}.", "a picture of {c}.", "an illustration of {c}.", "{c}")
"""Prompts; `{c}` stands for the class name."""


def label_of(group: str) -> int:
    """Returns the label of `group`."""
    return list(CLASS_NAMES).index(group)


def prompts_of(label: int) -> list[str]:
    """Returns all prompts of the class `label`."""
    name = list(CLASS_NAMES.values())[label]
    return [template.replace("{c}", name) for template in TEMPLATES]
