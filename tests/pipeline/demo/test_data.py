"""The demo's data on disk."""

import tarfile
from dataclasses import replace

import pytest

from cache_schema.errors import MismatchError
from pipeline.demo.classes import CLASS_NAMES
from pipeline.demo.data import DataConfig, DemoData, make_data
from stages.evaluate.data import open_evaluation_set
from stages.sources import expand
from tests.corpora.folders import contents_of

CONFIG = DataConfig(num_pictures=36, num_sentences=100, pictures_per_tar=12)


def ignore(done: int, total: int, unit: str, note: str = "") -> None:
    """Stands for a progress bar."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    path = tmp_path_factory.mktemp("demo") / "data"
    make_data(path, CONFIG, progress=ignore)
    return DemoData(path)


def test_default_data_is_what_the_demo_promises() -> None:
    config = DataConfig()

    assert config.num_pictures is None  # all 1,898, of which four fifths are 1,500 and more
    assert config.num_sentences >= 20_000
    assert config.held_out_share == 0.2


def test_no_held_out_picture_is_among_those_to_train_on(made: DemoData) -> None:
    held_out = [picture.payload for picture in open_evaluation_set(made.held_out).pictures()]
    trained = []
    for tar in sorted(made.path.glob("pictures-*.tar")):
        with tarfile.open(tar) as members:
            trained += [members.extractfile(member).read() for member in members]  # type: ignore[union-attr]

    assert (len(trained), len(held_out)) == (36 - len(held_out), len(held_out))
    assert not set(trained) & set(held_out)


def test_pictures_and_sentences_are_sources_that_extract_takes(made: DemoData) -> None:
    images = [source.scan().num_samples for source in expand(made.tars, "image")]
    texts = [source.scan().num_samples for source in expand(str(made.sentences), "text")]

    assert sum(images) + open_evaluation_set(made.held_out).count_pictures() == 36
    assert texts == [100]


def test_the_evaluation_set_has_the_emoji_groups_as_classes(made: DemoData) -> None:
    held_out = open_evaluation_set(made.held_out)

    assert held_out.class_names == tuple(CLASS_NAMES.values())
    assert all("{c}" in template for template in held_out.templates)
    assert {picture.label for picture in held_out.pictures()} <= set(range(9))


def test_a_rerun_leaves_finished_data_alone(made: DemoData) -> None:
    before = {file: file.stat().st_mtime_ns for file in made.path.rglob("*")}

    make_data(made.path, CONFIG, progress=ignore)

    assert {file: file.stat().st_mtime_ns for file in made.path.rglob("*")} == before


def test_after_a_crash_a_rerun_writes_the_same_bytes(made: DemoData) -> None:
    before = contents_of(made.path)
    made.summary.unlink()
    made.alignment.unlink()
    (made.path / "pictures-001.tar").write_bytes(b"half a tar")

    make_data(made.path, CONFIG, progress=ignore)

    assert contents_of(made.path) == before


def test_data_of_another_configuration_is_refused(made: DemoData) -> None:
    with pytest.raises(MismatchError, match=r"num_sentences.*remove the folder"):
        make_data(made.path, replace(CONFIG, num_sentences=50), progress=ignore)
