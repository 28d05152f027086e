"""The commands, one file each, with `command` in it; a file is imported only when its command is used."""

import keyword

COMMANDS: dict[str, str] = {
    "demo": "run everything on real pictures and sentences, in about eight minutes",
    "plan": "say what an extract would do, write and take, before it runs",
    "extract": "encode images and sentences with a teacher, once, into a cache",
    "import": "read features that others already computed into a cache",
    "mine": "find the nearest sentences of every image in a cache",
    "dedup": "choose the rows of a cache that repeat no other",
    "distill": "train a student from a cache",
    "runs": "compare runs: how far they are, what they reached, in what they differ",
    "evaluate": "measure a student or a teacher on labelled images",
    "inspect": "show what is in a cache",
    "verify": "prove that every byte of a cache is what was committed",
    "repair": "extract the damaged parts of a cache again",
    "gc": "remove files that interrupted writes left in a cache",
    "list": "list teachers, students, sources, formats of features or losses",
}


def module_of(command: str) -> str:
    """Returns the module of a command; a name that Python keeps for itself has an underscore behind it there."""
    return f"pipeline.commands.{command}_" if keyword.iskeyword(command) else f"pipeline.commands.{command}"
