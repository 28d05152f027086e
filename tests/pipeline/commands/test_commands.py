"""Every command of the program has a module."""

from pipeline.commands import COMMANDS, module_of
from tests.corpora.processes import ROOT


def test_every_command_is_found_in_its_module() -> None:
    assert module_of("import") == "pipeline.commands.import_" and module_of("extract") == "pipeline.commands.extract"
    folder = ROOT / "pipeline" / "commands"
    assert all((folder / f"{module_of(name).rpartition('.')[2]}.py").exists() for name in COMMANDS)
