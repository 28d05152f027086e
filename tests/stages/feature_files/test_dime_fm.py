"""Lines of DIME-FM that hold no feature keep their rows."""

from pathlib import Path

import pytest

from cache_schema.verify import verify_cache
from tests.corpora.extracts import import_config, import_features, outcomes_in
from tests.corpora.foreign_features import (
    keys_of,
    vectors,
    write_feature_tsv,
    write_image_tsv,
)
from tests.corpora.pictures import jpeg


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "with pictures"])
def test_lines_that_hold_no_feature_keep_their_rows_with_a_status(joined: bool, tmp_path: Path) -> None:
    path = write_feature_tsv(tmp_path / "f.tsv", keys_of(8), vectors(8))
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:-1]
    lines[2] = "k0002"
    lines[3] = lines[3].split("\t")[0] + "\tAAAA"
    lines[4] = write_feature_tsv(tmp_path / "g.tsv", ["k0004"], vectors(1, dim=16)).read_text().strip()
    path.write_text("\n".join(lines) + "\n")
    write_image_tsv(tmp_path / "i.tsv", keys_of(8), [jpeg(9, 8, at) for at in range(8)])
    images = (str(tmp_path / "i.tsv"),) if joined else ()
    import_features(import_config(tmp_path / "cache", image_features=(str(path),), images=images))
    bad = {key: outcome for key, outcome in outcomes_in(tmp_path / "cache").items() if outcome[0] != "ok"}
    assert bad == {
        "k0001": ("feature-encoding", "not base64"),
        "k0002": ("feature-encoding", "no second column"),
        "k0003": ("feature-encoding", "not float32"),
        "k0004": ("feature-wrong-width", "16 values"),
    }
    assert verify_cache(tmp_path / "cache") == []
