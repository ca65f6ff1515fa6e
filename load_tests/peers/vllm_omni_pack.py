"""vLLM-Omni and what it imports, as archives for a GPU machine without a package registry.

For CPython 3.12 on x86-64 with glibc 2.28 or newer, torch 2.11 for CUDA 13, transformers 5.17 and a
Hopper GPU; what such a machine needs beyond them is in PACKAGES. Their code is installed, never
copied. The command line is that of `peers_vllm_omni`.
"""

import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from load_tests.servers.child import say

VERSION: Final = "0.26.0"
# With pinned versions: what was resolved when this was written, and imported with them.
PACKAGES: Final = """
    aenum==3.1.16 annotated-types==0.8.0 apache-tvm-ffi==0.1.10 astor==0.8.1 blake3==1.0.11
    cachetools==8.0.0 cbor2==6.2.1 cffi==2.1.1 compressed-tensors==0.17.0 depyf==0.20.0
    diffusers==0.38.0 dill==0.4.1 dnspython==2.9.2 docstring-parser==0.18.0 email-validator==2.4.0
    fastapi==0.136.3 gguf==0.19.0 googleapis-common-protos==1.76.0 httpcore2==2.16.2 httpx2==2.16.2
    ijson==3.6.0 importlib-metadata==10.2.0 interegular==0.3.3 janus==2.0.0 jiter==0.19.0
    jmespath==1.1.0 jsonschema==4.26.0 jsonschema-specifications==2025.9.1 lark==1.2.2
    lazy-importer==0.1.0 llguidance==1.7.6 lm-format-enforcer==0.11.3 loguru==0.7.3 mcp==2.3.0
    mcp-types==2.3.0 mistral-common==1.13.1 model-hosting-container-standards==0.1.16
    msgspec==0.22.0 omegaconf==2.4.0 openai==3.52.0 openai-harmony==0.0.8 opentelemetry-api==1.45.2
    opentelemetry-exporter-http-transport==0.66b2 opentelemetry-exporter-otlp==1.45.2
    opentelemetry-exporter-otlp-common==0.66b2 opentelemetry-exporter-otlp-proto-common==1.45.2
    opentelemetry-exporter-otlp-proto-grpc==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2
    opentelemetry-proto==1.45.2 opentelemetry-sdk==1.45.2 opentelemetry-semantic-conventions==0.66b2
    opentelemetry-semantic-conventions-ai==0.5.1 outlines-core==0.2.14
    partial-json-parser==0.2.1.1.post7 prettytable==3.18.0 prometheus-fastapi-instrumentator==8.1.0
    pybase64==1.5.1 pycountry==26.2.16 pycparser==3.12 pydantic==2.14.3 pydantic-core==2.50.4
    pydantic-extra-types==2.11.1 pydantic-settings==2.16.3 pyjwt==2.15.1 python-dotenv==1.2.4
    python-json-logger==4.2.0 python-multipart==0.0.34 pyzmq==27.3.0 referencing==0.37.0
    rpds-py==2026.9.1 setproctitle==1.3.8 sniffio==1.3.1 soundfile==0.14.0 sse-starlette==3.7.0
    starlette==1.10.0 truststore==0.10.5 typing-inspection==0.4.5 uvicorn==0.54.0 watchfiles==1.3.0
    wcwidth==0.9.4 xgrammar==0.2.7
"""
# Of the two packages themselves. Attention runs in FA3 on Hopper; the talker is dense; the front
# end is the Python one.
UNUSED: Final = """
    vllm/vllm-rs vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so vllm/_moe_C_stable_libtorch.abi3.so
    vllm/_flashmla*.so vllm/_qutlass_C.abi3.so vllm/third_party/deep_gemm/* vllm/benchmarks/sweep/*
    vllm/third_party/fmha_sm100/* vllm/vllm_flash_attn/cute/* vllm/third_party/tml_fa4/*
    vllm/distributed/kv_transfer/*.jpg *.md *.js.map */tests/* pycountry/locales/* bin/*
    mistral_common/data/* numpy/* numpy.libs/* numpy-*
"""
# GPU code for several architectures, of which one is kept.
FAT_LIBRARIES: Final = (
    "vllm/_C_stable_libtorch.abi3.so",
    "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
)
HOPPER: Final = 90
PART_LIMIT_BYTES: Final = 56 << 20
_GLIBC_MINORS: Final = (39, 38, 36, 35, 34, 31, 28, 27, 24, 17, 12, 5)

_FATBIN_MAGIC: Final = b"\x50\xed\x55\xba"


def pip(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "--quiet", *arguments], check=True)


def target_options() -> list[str]:
    """What makes pip choose wheels for the GPU machine instead of this one."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in _GLIBC_MINORS]
    platforms += [f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")]
    options = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    for abi in ("cp312", "abi3", "none"):
        options += ["--abi", abi]
    for platform in platforms:
        options += ["--platform", platform]
    return ["--no-deps", *options]


def pack(out: Path) -> None:
    """Write `out`/omni-1, omni-2: one archive each, of trees to be unpacked over each other."""
    os.nice(10)
    with tempfile.TemporaryDirectory(prefix="omni-") as scratch:
        site, wheels = Path(scratch, "site"), Path(scratch, "wheels")
        own = [f"vllm=={VERSION}", f"vllm-omni=={VERSION}"]
        pip("download", "--dest", str(wheels), *target_options(), *own)
        for wheel in wheels.iterdir():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(
                    site, [name for name in archive.namelist() if not is_unused(name)]
                )
            wheel.unlink()
        pip("install", "--no-compile", "--target", str(site), *target_options(), *PACKAGES.split())
        for library in FAT_LIBRARIES:
            keep_architecture(site / library, HOPPER)
        first = [site / "vllm"]
        rest = sorted(path for path in site.iterdir() if path not in first)
        for number, trees in enumerate((first, rest), 1):
            write_part(out / f"omni-{number}" / f"omni-{number}.txz", site, trees)


def is_unused(name: str) -> bool:
    return any(
        fnmatch(name, pattern) or name.startswith(pattern + "/") for pattern in UNUSED.split()
    )


def write_part(path: Path, site: Path, trees: Sequence[Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if is_unused(member.name) or "__pycache__" in member.name else member

    part = path.with_suffix(".part")
    with tarfile.open(part, "w:xz", preset=6) as archive:
        for tree in trees:
            archive.add(tree, tree.relative_to(site).as_posix(), filter=kept)
    part.replace(path)
    size = path.stat().st_size
    say(f"{path}: {size / 2**20:.1f} MiB")
    if size > PART_LIMIT_BYTES:
        raise SystemExit(f"{path} is over {PART_LIMIT_BYTES >> 20} MiB")


def keep_architecture(library: Path, architecture: int) -> None:
    """Zero the GPU code for other architectures, in place: it then packs to nothing.

    The file stays valid, since every entry keeps its place, its size and its header.
    """
    listing = subprocess.run(
        ["readelf", "-SW", str(library)], check=True, capture_output=True, text=True
    ).stdout
    data = bytearray(library.read_bytes())
    zeroed = 0
    for line in listing.splitlines():
        if ".nv_fatbin" not in line:
            continue
        # name, type, address, offset, size
        fields = line.split("]")[1].split()
        offset = int(fields[3], 16)
        end = offset + int(fields[4], 16)
        while offset < end - 16:
            if data[offset : offset + 4] != _FATBIN_MAGIC:
                offset += 8
                continue
            _, header_size, body_size = struct.unpack_from("<HHQ", data, offset + 4)
            entry = offset + header_size
            offset = entry + body_size
            while entry < offset:
                _, _, entry_header, payload = struct.unpack_from("<HHIQ", data, entry)
                (compiled_for,) = struct.unpack_from("<I", data, entry + 28)
                start = entry + entry_header
                if compiled_for != architecture:
                    data[start : start + payload] = bytes(payload)
                    zeroed += payload
                entry = start + payload
    library.write_bytes(data)
    say(f"{library.name}: {zeroed / 1e6:.0f} MB for other architectures than {architecture}")
