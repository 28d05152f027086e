"""Pages from templates: HTML files with `$names`, and the style that all of them share."""

from importlib import resources
from string import Template


def fill_template(package: str, name: str, **values: str) -> str:
    """Returns the template file `name` of `package` with its `$names` replaced: `$style` by the style of all pages.

    Values are markup; whoever gives text escapes it.
    """
    template = Template((resources.files(package) / name).read_text(encoding="utf-8"))
    style = (resources.files("pipeline.pages") / "style.css").read_text(encoding="utf-8")
    return template.substitute(values, style=style)
