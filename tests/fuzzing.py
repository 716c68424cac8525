"""Feeds bad input to everything that reads any, and checks that it is accepted or refused.

    python -m tests.fuzzing --cases 12000

A case is a defect unless its input is used as what it is, or refused by one clear sentence (on a
command line by a message of tyro's too); no other exception, no wrong value, no damaged file.
"""

import argparse
import contextlib
import functools
import gzip
import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors.numpy import save

from jaxcnn.cli import tools
from jaxcnn.cli.flags import parse_flags
from jaxcnn.cli.study import parse_study_flags
from jaxcnn.data import formats
from jaxcnn.data.cache import Arrays, load_or_build
from jaxcnn.deploy import own_images
from jaxcnn.errors import UserError
from jaxcnn.networks import pytorch
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import Recipe, recipe_from_dict
from jaxcnn.storage import checkpoint, manifest
from jaxcnn.storage.store import open_store
from jaxcnn.study.runs import Run, load_runs, run_lines
from tests import original
from tests.official import cifar_members, idx, write_tar
from tests.stripes import striped_split

REPOSITORY = Path(__file__).parent.parent
Case = Callable[[random.Random], bool]

_TEXTS = [
    *("", "0", "-1", "1", "2.5", "1e400", "nan", "-inf", "9" * 40, "0x10", "1_0", "\u0663"),
    *("True", "None", "[]", "{}", "()", "a=b", "b1=0.9", "b1=nan", "=", "lr=1e999", "x" * 5000),
    *(
        "--",
        "-",
        "-h",
        "--help",
        "\x00",
        "\n",
        "\x1b[31m",
        "\U0001f600",
        "\ud800",
        "../..",
        "/",
        "~",
    ),
    *("sgd", "adam", "json:dumps", "os:getcwd", "no:such", ":", "fast", "best", "x.toml", "auto"),
    *("device", "stream", "must", "5steps", "0", "latest", "1e-4:1:log10", "1:2:3", "default"),
]
_NUMBERS = [0, 1, -1, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 1.5, float("inf")]


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Returns other bytes: some flipped, cut, moved, random."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        size = len(data)
        start = generator.randrange(size + 1)
        length = min(generator.choice((1, 2, 4, 16, 300)), size - start)
        stop = start + length
        match generator.randrange(8):
            case 0 | 1 if size:
                data[generator.randrange(size)] ^= 1 << generator.randrange(8)
            case 2:
                del data[start:]
            case 3:
                del data[start:stop]
            case 4:
                data[start:start] = generator.randbytes(length)
            case 5:
                data[start:stop] = generator.choice((b"\xff", b"\x00")) * length
            case 6:
                data[start:stop] = data[:length]
            case _:
                number = int(generator.choice(_NUMBERS[:9])) % 2**32
                data[start : start + 4] = number.to_bytes(4, generator.choice(("big", "little")))
    return generator.randbytes(len(data) % 999) if generator.random() < 0.03 else bytes(data)


def mutate_json(value: Any, generator: random.Random) -> Any:
    """Returns another value, of the same form or not."""
    if generator.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return generator.choice([*_NUMBERS, None, True, [], {}, *_TEXTS[:20], [[[]]], {"a": 1}])
    if isinstance(value, dict):
        name = generator.choice(list(value))
        if generator.random() < 0.2:
            return {key: entry for key, entry in value.items() if key != name}
        return {**value, name: mutate_json(value[name], generator)}
    position = generator.randrange(len(value))
    if generator.random() < 0.2:
        return value[:position]
    changed = mutate_json(value[position], generator)
    return [*value[:position], changed, *value[position + 1 :]]


def takes(call: Callable[[], Any], check: Callable[[Any], bool] = lambda value: True) -> bool:
    """Returns whether an input is accepted (and correct) or refused in one sentence."""
    try:
        value = call()
    except UserError as error:
        text = str(error)
        assert text, "an empty message"
        assert text.count("\n") <= sum(c in text for c in "\x00\x1b") + text.count("\\n"), text
        return False
    assert check(value), "it was accepted as something else"
    return True


class Targets:
    """Everything that reads input, and valid examples of the input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shape = (32, 32, 3)
        splits = {"train": striped_split(shape, 10, 0), "test": striped_split(shape, 4, 1)}
        write_tar(folder / "cifar.tar.gz", cifar_members(splits))
        self.idx = idx(striped_split((28, 28, 1), 6, 2).images[..., 0])
        self.tar = gzip.decompress((folder / "cifar.tar.gz").read_bytes())
        self.weights = original.weights("mnist")
        self.images = list(self._images())
        self.tree = {"state": {"a": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(0)}}
        self.saved = folder / "saved"
        with open_store(checkpoint.Policy(self.saved, keep=3), {"seed": 0}) as store:
            for step in (1, 2):
                store.save(step, self.tree, {"history": [], "seconds": 0.5}, 0.5)
        self.arrays = {"images": np.arange(48, dtype=np.uint8), "labels": np.arange(4)}
        load_or_build(folder / "cache" / "sound", fingerprint={"v": 1}, build=self._build)
        self.recipe = b'base = "fast"\nepochs = 3\nmean = [0.1]\n[optimizer_args]\nb1 = 0.9\n'
        self.runs = self._runs()
        self.all: dict[str, Case] = {
            name.removeprefix("try_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("try_")
        }

    def _images(self) -> Any:
        image = Image.fromarray(striped_split((28, 28, 1), 1, 0).images[0, :, :, 0]).resize(
            (40, 30)
        )
        for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"):
            for mode in ("L", "RGB", "P", "RGBA", "1", "I;16"):
                file = io.BytesIO()
                try:
                    image.convert(mode).save(file, kind)
                except (OSError, KeyError, ValueError):
                    continue  # not every format has every mode
                yield file.getvalue()

    def _runs(self) -> bytes:
        self.run = Run("tune", "sgd", 0.1, 0, 7, 0, 5, 10, (1.0,), (0.5,))
        return run_lines(3 * [self.run])

    def _build(self) -> Arrays:
        return Arrays(dict(self.arrays), ("a", "b"))

    def _read(
        self, content: bytes, suffix: str, read: Callable[[Path], Any], **options: Any
    ) -> bool:
        """Lets a file be read, and checks that it is unchanged."""
        path = self.folder / f"input{suffix}"
        path.write_bytes(content)
        taken = takes(lambda: read(path), **options)
        assert path.read_bytes() == content, "the file was changed"
        return taken

    def try_command_line(self, generator: random.Random) -> bool:
        """Flags of all commands, with values of all kinds."""
        names = (
            "--recipe --epochs --batch-size --optimizer --learning-rate --optimizer-args --keep "
            "--weight-decay --schedule --warmup --clip --ema --seed --data --data-dir --workdir "
            "--resume --checkpoint-every --feed --optimizers --learning-rates --seeds --target "
            "--network --chunk --validation --checkpoint --prepared --epoch evaluate predict"
        ).split()
        argv = []
        for _ in range(generator.randrange(5)):
            argv.append(generator.choice(names))
            if generator.random() < 0.8:
                argv.append(generator.choice([*_TEXTS, str(generator.choice(_NUMBERS))]))
            if generator.random() < 0.1:
                argv[-1] = f"{argv[-1]}={generator.choice(_TEXTS)}"

        def parse() -> Any:
            match generator.randrange(4):
                case 0:
                    return parse_flags("mnist", argv)
                case 1:
                    return parse_flags("cifar10", argv)
                case 2:
                    return parse_study_flags(argv)
                case _:
                    return tools.parse_command(argv)

        try:
            return takes(parse)
        except SystemExit as stop:
            assert stop.code in (0, None, 2)  # --help, or tyro's message
            return not stop.code

    def try_recipe_file(self, generator: random.Random) -> bool:
        """TOML files: damaged ones, and ones with values of all kinds."""
        fields = [*named.recipe("mnist", "fast").asdict(), "base", "name", "epoch", "mean"]
        content = self.recipe
        if generator.random() < 0.6:
            lines = []
            for name in generator.sample(fields, generator.randrange(1, 5)):
                value = generator.choice(
                    [*_NUMBERS, [1.0], [], True, {}, "sgd", "cosine", "linear"]
                )
                text = json.dumps(value).replace("Infinity", "inf")
                lines.append(f"{name} = {text}")
            content = "\n".join(lines).encode()
        else:
            content = mutate(content, generator)

        def read(path: Path) -> Recipe:
            _, recipe = parse_flags("mnist", ["--recipe", str(path)])
            return recipe

        def whole(recipe: Recipe) -> bool:
            return recipe_from_dict(json.loads(json.dumps(recipe.asdict()))) == recipe

        return self._read(content, ".toml", read, check=whole)

    def try_idx_archive(self, generator: random.Random) -> bool:
        """MNIST's files, damaged before or after compression."""
        inside = generator.random() < 0.7
        content = gzip.compress(mutate(self.idx, generator) if inside else self.idx, 1)
        content = content if inside else mutate(content, generator)

        def sound(array: np.ndarray) -> bool:
            return array.dtype == np.uint8 and array.ndim in (1, 3)

        return self._read(content, ".gz", formats.read_idx, check=sound)

    def try_cifar_archive(self, generator: random.Random) -> bool:
        """CIFAR-10's archive, damaged in the same ways, or with members that do not belong."""
        way = generator.random()
        if way < 0.3:
            content = gzip.compress(self._odd_tar(generator), 1)
        elif way < 0.8:
            content = gzip.compress(mutate(self.tar, generator), 1)
        else:
            content = mutate(gzip.compress(self.tar, 1), generator)
        before = sorted(self.folder.rglob("*"))

        def sound(archive: formats.CifarArchive) -> bool:
            batches = [batch for part in archive.batches.values() for batch in part]
            return all(
                images.shape[1:] == (32, 32, 3) and labels.max(initial=0) < 10
                for images, labels in batches
            )

        taken = self._read(content, ".tar.gz", formats.read_cifar, check=sound)
        after = set(self.folder.rglob("*")) - {self.folder / "input.tar.gz"}
        assert after <= set(before), "something was unpacked"
        return taken

    def _odd_tar(self, generator: random.Random) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            with tarfile.open(fileobj=io.BytesIO(self.tar)) as sound:
                for member in sound:
                    archive.addfile(member, sound.extractfile(member))
            name = generator.choice(("../evil", "/tmp/evil", "cifar-10-batches-bin/test_batch.bin"))
            member = tarfile.TarInfo(name)
            member.type = generator.choice(
                (
                    tarfile.SYMTYPE,
                    tarfile.LNKTYPE,
                    tarfile.CHRTYPE,
                    tarfile.REGTYPE,
                    tarfile.DIRTYPE,
                )
            )
            member.linkname = generator.choice(("/etc/passwd", "../../x", ""))
            archive.addfile(member)
        return file.getvalue()

    def try_cache(self, generator: random.Random) -> bool:
        """Caches of which a file was altered, cut or removed: built anew."""
        folder = self.folder / "cache" / "altered"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / "cache" / "sound", folder)
        self._damage(folder, generator)
        lines: list[str] = []
        loaded = load_or_build(folder, fingerprint={"v": 1}, build=self._build, report=lines.append)
        for name, array in self.arrays.items():
            np.testing.assert_array_equal(loaded.arrays[name], array)
        assert loaded.class_names == ("a", "b")
        return not lines

    def _damage(self, folder: Path, generator: random.Random, forge: bool = False) -> bool:
        """Alters a file, or forges a manifest with the correct digest; returns whether it did."""
        path = generator.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        way = generator.random()
        if way < 0.1:
            path.unlink()
        elif path.name == manifest.NAME and forge and way < 0.7:
            content = mutate_json(json.loads(path.read_text())["content"], generator)
            whole = {"sha256": manifest._digest(content), "content": content}
            path.write_text(json.dumps(whole))
            return True
        else:
            path.write_bytes(mutate(path.read_bytes(), generator))
        return False

    def try_checkpoint(self, generator: random.Random) -> bool:
        """Checkpoints of which a file was altered: refused, and the previous one is used."""
        folder = self.folder / "altered"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.saved, folder)
        forged = self._damage(checkpoint.list_checkpoints(folder)[-1].folder, generator, forge=True)

        def resume() -> Any:
            with open_store(checkpoint.Policy(folder), {"seed": 0}) as store:
                return store.resume(self.tree)

        def same(found: Any) -> bool:
            (tree, _, path) = found
            np.testing.assert_array_equal(tree["state"]["a"], self.tree["state"]["a"])
            return path.parent == folder

        # A forged one may claim to be of another run.
        assert takes(resume, same) or forged, "no checkpoint could be used"
        for saved in checkpoint.list_checkpoints(folder):
            if saved.step == 1:
                saved.restore(self.tree)  # the valid one is untouched
        takes(lambda: checkpoint.best_checkpoint(folder))
        return not list(folder.glob("*.damaged"))

    def try_state_dict(self, generator: random.Random) -> bool:
        """Weights: damaged files, and mappings with tensors of all kinds."""
        if generator.random() < 0.5:
            content = mutate(save(self.weights), generator)
            return self._read(content, ".safetensors", pytorch.load_state_dict)
        tensors: dict[Any, Any] = dict(self.weights)
        name = generator.choice(list(tensors))
        tensors[name] = generator.choice(
            [
                np.zeros(()),
                np.zeros((3, 3)),
                tensors[name].astype(np.int32),
                tensors[name].astype(str),
                tensors[name].astype(object),
                tensors[name][..., None],
                None,
                "text",
                [1.0],
                {"a": 1},
            ]
        )
        if generator.random() < 0.3:
            tensors[generator.choice(("conv9.weight", "", 5, "module."))] = np.zeros(2)
        return takes(lambda: pytorch.load_state_dict(tensors))

    def try_image(self, generator: random.Random) -> bool:
        """Images of all formats, damaged."""
        content = mutate(generator.choice(self.images), generator)
        network = generator.choice(("mnist", "cifar10"))
        shape = named.recipe(network, "fast").image_shape

        def sound(prepared: own_images.PreparedImage) -> bool:
            return prepared.image.shape == shape and prepared.image.dtype == np.uint8

        prepare = functools.partial(own_images.prepare_image, network=network)
        return self._read(content, ".png", prepare, check=sound)

    def try_study(self, generator: random.Random) -> bool:
        """The runs of a study that was killed, or whose file was edited."""
        path = self.folder / "runs.jsonl"
        path.write_bytes(mutate(self.runs, generator))
        return takes(lambda: load_runs(path), lambda runs: set(runs) <= {self.run})


def whole_commands(folder: Path) -> list[str]:
    """Starts some commands on bad input, as a user would, and returns the defects."""
    (folder / "text.png").write_text("no image")
    (folder / "bad.toml").write_text("epochs = 'many'")
    (folder / "step-0000000001").mkdir()
    train = str(REPOSITORY / "experiments" / "mnist.py")
    cases = [
        [train, "--epochs", "x"],
        [train, "--recipe", str(folder / "bad.toml")],
        [train, "--recipe", str(folder / "none.toml")],
        [train, "--workdir", str(folder / "text.png"), "--data", "synthetic"],
        [train, "--checkpoint-every", "often", "--data", "synthetic"],
        [train, "--resume", "must", "--workdir", str(folder / "new"), "--data", "synthetic"],
        [train, "--optimizer-args", "b1=\x1b"],
        ["-m", "jaxcnn"],
        ["-m", "jaxcnn", "evaluate", str(folder)],
        ["-m", "jaxcnn", "evaluate", str(folder / "nothing")],
        ["-m", "jaxcnn", "predict", str(folder), str(folder / "text.png")],
        ["-m", "jaxcnn", "predict", str(folder)],
    ]
    defects = []
    for case in cases:
        done = subprocess.run(
            [sys.executable, *case], capture_output=True, text=True, check=False, cwd=REPOSITORY
        )
        message = ": error: " in done.stderr or "helptext" in done.stderr
        if done.returncode != 2 or "Traceback" in done.stderr or not message:
            defects.append(f"{case}: status {done.returncode}, {done.stderr}")
    return defects


def torment(cases: int, seed: int = 0, only: str = "") -> dict[str, Any]:
    """Tries a number of cases; returns the counts by target and outcome, and the defects."""
    counts: Counter[str] = Counter()
    defects: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        targets = Targets(Path(name)).all
        chosen = {only: targets[only]} if only else targets
        for number in range(cases):
            target = list(chosen)[number % len(chosen)]
            key = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8])
            try:
                with (  # where --help and tyro's messages go
                    contextlib.redirect_stdout(io.StringIO()),
                    contextlib.redirect_stderr(io.StringIO()),
                ):
                    taken = chosen[target](random.Random(key))
            except Exception:
                lines = traceback.format_exc().splitlines()
                defects.append(f"{target}, case {number}: {lines[-1][:300]} | {lines[-3:-1]}")
                counts[f"{target}: defect"] += 1
            else:
                counts[f"{target}: {'taken' if taken else 'refused'}"] += 1
    return {"cases": cases, "counts": dict(sorted(counts.items())), "defects": defects}


def main() -> None:
    """Prints what was found; ends with status 1 if there are defects."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    found = torment(asked.cases, asked.seed, asked.only)
    if not asked.only:
        with tempfile.TemporaryDirectory() as name:
            found["defects"] += whole_commands(Path(name))
    sys.stdout.write(f"{json.dumps(found, indent=2)}\n")
    sys.exit(bool(found["defects"]))


if __name__ == "__main__":
    main()
