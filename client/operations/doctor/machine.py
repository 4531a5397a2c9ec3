"""The machine: disk, memory, GPU."""

import contextlib
import os
import shutil
from pathlib import Path

import torch

from consilium.client.operations.doctor.finding import Finding, failed, passed, skipped, warned
from consilium.common.errors import ModelError, StateError
from consilium.common.host.files import check_writable
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig

_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Words of /proc/cpuinfo of which a processor with bfloat16 units has one: Intel and AMD, and ARM."""
MIN_DISK, GOOD_DISK, GOOD_MEMORY = 200e6, 2e9, 1.5e9
"""Bytes: below the first nothing can be kept; below the others a study may not fit."""


def check_state(config: SiteConfig) -> Finding:
    """Write a file where personal models will be kept."""
    try:
        check_writable(config.state_dir, what="state_dir")
    except StateError as error:
        fix = f"let the user that runs consilium (uid {os.getuid()}) own it, or correct state_dir in site.toml"
        return failed("state", str(error), fix, StateError)
    return passed("state", f"'{config.state_dir}' can be written")


def check_disk(config: SiteConfig) -> Finding:
    """Check how much space the disk of the state folder has left."""
    there = next(folder for folder in (config.state_dir, *config.state_dir.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free for personal models"
    if free < MIN_DISK:
        return failed("disk", text, "free some space, or move state_dir to another disk", StateError)
    if free < GOOD_DISK:
        return warned("disk", text, f"{GOOD_DISK / 1e9:.0f} GB are enough for most studies")
    return passed("disk", text)


def check_memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Finding:
    """Check how much memory is available, within a container's limit."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return skipped("memory", "this system does not say how much is available")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        free = min(free, int(limit.read_text()))
    text = f"{free / 1e9:.1f} GB available"
    if free < GOOD_MEMORY:
        return warned("memory", text, f"{GOOD_MEMORY / 1e9:g} GB and what the data needs should be there")
    return passed("memory", text)


def check_gpu(config: SiteConfig) -> Finding:
    """Check which device training would run on."""
    if config.device == "cpu":
        return passed("gpu", "not used: device is 'cpu'")
    if torch.cuda.is_available():
        return passed("gpu", torch.cuda.get_device_name())
    if config.device == "cuda":
        fix = "install the GPU's driver and a torch that fits it, or set device to 'auto'"
        return failed("gpu", "device is 'cuda', but torch finds no GPU", fix, ModelError)
    return passed("gpu", "none; training runs on the processor")


def check_precision(
    config: SiteConfig, study: StudyConfig | None, cpuinfo: Path = Path("/proc/cpuinfo")
) -> list[Finding]:
    """Say where training in bfloat16 would be slow on this processor; nothing where the study asks for none."""
    if study is None or study.training.precision != "bfloat16":
        return []
    if config.device != "cpu" and torch.cuda.is_available():
        return [passed("precision", "bfloat16, on the GPU")]
    try:
        words = {word for line in cpuinfo.read_text(errors="replace").splitlines() for word in _flags(line)}
    except OSError:
        words = set()
    if not words:
        return [skipped("precision", "this system does not say whether its processor has bfloat16 units")]
    if words & _BFLOAT16:
        return [passed("precision", "bfloat16, for which this processor has units")]
    text = "training.precision = 'bfloat16' is slow here: this processor has no bfloat16 units"
    return [warned("precision", text, "ask the coordinator for training.precision = 'float32'")]


def _flags(line: str) -> list[str]:
    """Return the words of a line of /proc/cpuinfo that lists what a processor can do."""
    name, _, words = line.partition(":")
    return words.split() if name.strip().lower() in ("flags", "features") else []
