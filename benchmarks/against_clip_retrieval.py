"""Steady-state time of `pipeline extract` against clip-retrieval's inference: same pictures, model file and cores.

    python -m benchmarks.against_clip_retrieval [--venv VENV] [--rows 256] [--rounds 2]

clip-retrieval 2.45 asks for older versions of open_clip, NumPy and PyArrow than ours, so it lives in a virtual
environment of its own, made at --venv when it is not there (about 0.6 GB): its own code and pure-Python needs, with our
torch, open_clip, NumPy and PyArrow underneath, so that both compute with the same libraries.

Both get the same batch size and the same number of decode processes. `theirs_s` is what clip-retrieval itself notes
as the duration of its batches (reading, inference, and gathering what it writes at the end), `ours_s` the time of the
worker from the first picture to the committed part; both include the start of their decode processes. `ratio` is ours /
theirs. The start-up times are those of whole processes, without the steady state. `min_cosine` is the smallest cosine
between the features that both made of the same picture.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import median, print_table, run_pipeline
from benchmarks.extract_overhead import extract
from benchmarks.pictures import payloads_of, write_folder
from benchmarks.teachers import save_open_clip
from cache_schema.cache import Cache
from stages.extract.config import ExtractConfig

ARCHITECTURE = "ViT-B-32"
COLUMNS = ("rows", "ours_s", "theirs_s", "ratio", "our_start_up_s", "their_start_up_s", "min_cosine")

# Without their own dependencies: torch and what we have come from our environment.
BARE_PACKAGES = (
    *("clip-retrieval==2.45.0", "all_clip", "clip-anytorch", "multilingual-clip", "img2dataset", "autofaiss"),
    *("embedding_reader", "fire==0.5.0", "termcolor", "braceexpand", "webdataset<0.3", "h5py", "prometheus-client"),
    *("flask", "flask_restful", "flask_cors", "aniso8601", "werkzeug", "itsdangerous", "blinker", "pandas<3"),
    *(
        "python-dateutil",
        "pytz",
        "tzdata",
        "six",
        "scikit-learn",
        "threadpoolctl",
        "joblib",
        "cloudpickle",
        "narwhals",
        "scipy",
    ),
    *("sentence-transformers<6", "transformers<5", "tokenizers<0.23", "huggingface_hub<1", "setuptools<80"),
)
WHOLE_PACKAGES = ("wandb", "aiohttp", "requests")


def make_environment(venv: Path) -> Path:
    """Returns the Python of a virtual environment that has clip-retrieval, made when it is not there."""
    python = venv / "bin" / "python"
    if not (venv / "bin" / "clip-retrieval").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        ours = venv / "lib" / version / "site-packages" / "ours.pth"
        ours.write_text(f"{sysconfig.get_paths()['purelib']}\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--no-deps", *BARE_PACKAGES], check=True)
        subprocess.run([*install, *WHOLE_PACKAGES], check=True)
    return python


def theirs(python: Path, pictures: Path, weights: Path, out: Path, asked: argparse.Namespace) -> tuple[float, float]:
    """Returns the seconds of clip-retrieval's inference over `pictures`: its batches', and the rest of the process."""
    options = {
        "input_dataset": pictures,
        "output_folder": out,
        "clip_model": f"open_clip:{ARCHITECTURE}/{weights}",
        "batch_size": asked.batch_size,
        "num_prepro_workers": asked.decode_workers,
        "enable_text": False,
        "enable_metadata": False,
    }
    argv = [
        str(python.parent / "clip-retrieval"),
        "inference",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    start = time.perf_counter()
    subprocess.run(argv, cwd=out.parent, check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - start
    batches = json.loads((out / "stats" / "0.json").read_text())
    assert batches["sample_count"] == asked.rows, batches
    return batches["total_duration"], seconds - batches["total_duration"]


def ours(pictures: Path, weights: Path, cache: Path, asked: argparse.Namespace) -> tuple[float, float]:
    """Returns the seconds of the worker of extract over `pictures`, and those of a fresh process until its end."""
    config = ExtractConfig(
        cache=cache,
        images=(str(pictures),),
        teacher=f"open_clip:{ARCHITECTURE}@{weights}",
        batch_size=asked.batch_size,
        decode_workers=asked.decode_workers,
        index=False,
    )
    seconds, _ = extract(config)
    fresh = cache.with_name(f"{cache.name}-fresh")
    ran = run_pipeline(
        *("extract", "--images", pictures, "--teacher", config.teacher, "--cache", fresh, "--no-index"),
        *("--batch-size", asked.batch_size, "--decode-workers", asked.decode_workers),
    )
    return seconds, ran.seconds - seconds


def min_cosine(cache: Path, out: Path) -> float:
    """Returns the smallest cosine between our feature and theirs of the same picture."""
    import pyarrow.parquet as pq

    array = Cache.open(cache).array("image")
    rows = array.ok_rows()
    mine = dict(zip(array.cache.keys("image", rows), array.features.gather_unit(rows), strict=True))
    (features,), (table,) = sorted((out / "img_emb").glob("*.npy")), sorted((out / "metadata").glob("*.parquet"))
    other = np.load(features, allow_pickle=False).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    names = pq.read_table(table).column("image_path").to_pylist()
    assert {Path(name).stem for name in names} == {Path(key).stem for key in mine}
    by_stem = {Path(key).stem: feature for key, feature in mine.items()}
    return min(float(by_stem[Path(name).stem] @ feature) for name, feature in zip(names, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "clip-retrieval")
    parser.add_argument(
        "--pictures", type=Path, help="folder or tar of JPEG pictures; the demo's drawings if not given"
    )
    parser.add_argument("--rows", type=int, default=256, help="pictures")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--decode-workers", type=int, default=1)
    asked = parser.parse_args()
    python = make_environment(asked.venv.absolute())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        payloads = payloads_of(asked.pictures, asked.rows)
        pictures = write_folder(folder / "pictures", payloads)
        weights = save_open_clip(folder / "model", ARCHITECTURE)
        rounds: list[dict[str, float]] = []
        for number in range(asked.rounds):
            cache, out = folder / f"cache-{number}", folder / f"out-{number}"
            mine, my_start_up = ours(pictures, weights, cache, asked)
            other, their_start_up = theirs(python, pictures, weights, out, asked)
            rounds.append(
                {
                    "ours_s": mine,
                    "theirs_s": other,
                    "ratio": mine / other,
                    "our_start_up_s": my_start_up,
                    "their_start_up_s": their_start_up,
                    "ratio_of_whole_runs": (mine + my_start_up) / (other + their_start_up),
                }
            )
        result: dict[str, Any] = {
            "rows": asked.rows,
            "batch_size": asked.batch_size,
            "decode_workers": asked.decode_workers,
            **{name: median([one[name] for one in rounds]) for name in rounds[0]},
            "ratios": [round(one["ratio"], 3) for one in rounds],
            "min_cosine": round(min_cosine(cache, out), 5),
        }
    print_table([result], COLUMNS)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
