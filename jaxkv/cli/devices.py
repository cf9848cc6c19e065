# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a command's model and caches lie: one device, a mesh of many, and many hosts."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxkv.core.errors import InputError

if TYPE_CHECKING:
    from jaxkv.checkpoints.model import Model

AXES = ("data", "model")
PATIENCE = 20  # seconds after which a process that is heard of no more ends the others


@dataclasses.dataclass(frozen=True)
class Devices:
    """Which devices were asked for.

    Attributes:
      data, model: of a mesh's axes; both 1 without one.
      layout: of caches; None is what suits the policy.
      hosts: how processes find each other: "auto" as their surroundings tell, or "address:port,
        number of processes, which of them this is"; None is one process.
    """

    data: int = 1
    model: int = 1
    layout: str | None = None
    hosts: str | None = None

    @property
    def many(self) -> bool:
        """Whether there is a mesh."""
        return self.data * self.model > 1

    def begin(self) -> None:
        """Joins the processes, before jax looks for devices."""
        if self.hosts is None:
            return
        import jax

        _keep_stdout()
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            where: tuple[Any, ...] = ()
            if self.hosts != "auto":
                address, count, index = self.hosts.split(",")
                where = address, int(count), int(index)
            jax.distributed.initialize(*where, heartbeat_timeout_seconds=PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--hosts: the processes do not find each other: {reason}") from None

    def load(
        self, name: str, dtype: str, progress: Any, weights: str | None,
        revision: str | None = None, tokenizer: str | None = None,
    ) -> Model:  # fmt: skip
        """A model there; see `sources.load`."""
        from jaxkv.checkpoints.sources import load
        from jaxkv.models.mesh import Meshed, mesh

        origin: dict[str, Any] = {"revision": revision, "tokenizer": tokenizer}
        if not self.many:
            return load(name, dtype, progress, weights, **origin)
        try:
            over = mesh(data=self.data, model=self.model)
        except InputError as error:
            raise InputError(f"--mesh: {error}{_hint(self.data * self.model)}") from None
        model = load(name, dtype, progress, weights, over, **origin)
        assert isinstance(model.config, Meshed)
        return dataclasses.replace(model, config=model.config.with_layout(self.layout))


def _keep_stdout() -> None:
    """What libraries write to stdout by themselves, as gloo does of its ranks, goes to stderr."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", encoding=sys.stdout.encoding, errors="replace")


def _hint(count: int) -> str:
    """How a CPU is made many devices."""
    import jax

    if jax.default_backend() != "cpu" or "JAX_NUM_CPU_DEVICES" in os.environ:
        return ""
    return f"; to try it on this CPU, set JAX_NUM_CPU_DEVICES={count}"


def add_devices(add: Callable[..., Any]) -> None:
    """--mesh, --cache-layout and --hosts."""
    add_mesh(add)
    add(
        "--hosts",
        type=str | None,
        metavar="HOW",
        help="the mesh has the devices of several processes, each of which runs this command: "
        "auto, or ADDRESS:PORT,COUNT,INDEX",
    )


def add_mesh(add: Callable[..., Any]) -> None:
    """--mesh and --cache-layout."""
    add(
        "--mesh",
        type=str | None,
        metavar="AXES",
        help="devices, such as data=2,model=4: rows of a batch are shared out over data, weights "
        "over model, caches over both (default: one device)",
    )
    add(
        "--cache-layout",
        type=str | None,
        metavar="LAYOUT",
        help="heads, rows or slots: what of a cache model shares out (default: by the policy)",
    )


def devices_of(given: argparse.Namespace) -> Devices:
    """What the flags say.

    Raises:
      InputError: in one line, what is wrong and what is allowed.
    """
    sizes = dict.fromkeys(AXES, 1)
    for word in [] if given.mesh is None else str(given.mesh).split(","):
        name, _, size = word.partition("=")
        if name not in AXES or not size.isdecimal() or not int(size):
            raise InputError(
                f"--mesh is {given.mesh!r}; it must be sizes of data and model, such as "
                "data=2,model=4"
            )
        sizes[name] = int(size)
    layout = getattr(given, "cache_layout", None)
    if layout not in (None, "heads", "rows", "slots"):
        raise InputError(f"--cache-layout is {layout!r}; it must be heads, rows or slots")
    devices = Devices(**sizes, layout=layout, hosts=_hosts(getattr(given, "hosts", None)))
    return devices


def check_used(given: argparse.Namespace) -> None:
    """Refuses flags that are for several devices where there is one.

    Raises:
      InputError: names the flag.
    """
    for name in ("cache_layout", "hosts"):
        if getattr(given, name, None) is not None and not devices_of(given).many:
            raise InputError(f"--{name.replace('_', '-')} is for a --mesh of several devices")


def _hosts(text: str | None) -> str | None:
    if text in (None, "auto"):
        return text
    words = text.split(",")
    numbers = words[1:]
    right = len(words) == 3 and ":" in words[0] and all(word.isdecimal() for word in numbers)
    if not right or not int(numbers[1]) < int(numbers[0]):
        raise InputError(
            f"--hosts is {text!r}; it must be auto, or ADDRESS:PORT,COUNT,INDEX such as "
            "10.0.0.1:8476,2,0"
        )
    return text
