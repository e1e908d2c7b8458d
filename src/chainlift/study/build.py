"""What a plan runs with (QEMUs, accelerator, guest, place of chains), and its chain, built where it is not yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.guest.accel import Choice, choose_accelerator
from chainlift.guest.catalog import guest_kind
from chainlift.host.cache import cache_dir
from chainlift.qemu.find import find_qemu
from chainlift.study.build_live import LiveBuilder
from chainlift.study.build_offline import build_offline
from chainlift.study.chain_store import ChainDirectory
from chainlift.study.rocksdb import PACKAGE
from chainlift.study.space import chain_bytes, require_space

if TYPE_CHECKING:
    from chainlift.guest.interface import GuestKind
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.machine import Accelerator
    from chainlift.study.chain_store import Manifest
    from chainlift.study.plan import Plan
    from chainlift.study.plan_tables import GuestPlan
    from chainlift.study.progress import Progress


@dataclass(frozen=True)
class Bench:
    """What a plan's guests and tools run on."""

    plan: Plan
    #: By the name that the plan gives them, in its order; the first one builds the chain.
    qemus: dict[str, Qemu]
    #: The directory that chains are kept in.
    chains: Path
    #: False where nothing that is measured boots a guest: then KVM need not be tried.
    boots: bool = True
    #: The accelerator, where it is known.
    known: Choice | None = None

    @classmethod
    def find(cls, plan: Plan) -> Bench:
        """Find everything that a plan names, without making anything.

        :raise MissingToolError: if a QEMU is not there.
        :raise InputError: if the guest's image is not there.
        """
        qemus = {spec: find_qemu(spec) for spec in plan.qemu}
        _guest_kind(plan.guest, next(iter(qemus.values())))
        chains = Path(plan.chains).absolute() if plan.chains else cache_dir("chains")
        return cls(plan, qemus, chains)

    @property
    def builder(self) -> Qemu:
        """The QEMU that builds the chain and makes overlays."""
        return next(iter(self.qemus.values()))

    @cached_property
    def chosen(self) -> Choice:
        """The accelerator; finding out may boot a guest, so it is done when it is first needed."""
        if self.known is not None:
            return self.known
        if not self.boots:
            return Choice("tcg", "no guest boots in this study")
        return choose_accelerator(self.plan.accelerator, self.builder)

    @cached_property
    def kind(self) -> GuestKind:
        """The plan's kind of guest."""
        packages = (PACKAGE,) if self.plan.chain.rocksdb_keys else ()
        return _guest_kind(self.plan.guest, self.builder, self.chosen.name, packages)

    @property
    def chain(self) -> ChainDirectory:
        """The plan's chain, built or not."""
        return ChainDirectory(self.chains / self.plan.chain_key())

    def bytes_to_build(self) -> int:
        """Estimate what is still to be written of the chain."""
        if self.chain.manifest() is not None:
            return 0
        there = sum(path.stat().st_blocks * 512 for path in self.chain.path.glob("*.qcow2"))
        return max(0, chain_bytes(self.plan) - there)


def built_chain(plan: Plan, bench: Bench, progress: Progress) -> tuple[ChainDirectory, Manifest]:
    """Return the plan's chain, building it, or what is left of it, first where it is not finished.

    :param plan: what is wanted.
    :param bench: the programs and directories that it is built with.
    :param progress: is told of stages and layers.
    :raise InputError: if there is too little space, or a finished chain is not as it was.
    :raise OperationError: if another study builds or uses it.
    """
    chain = bench.chain
    if (manifest := chain.manifest()) is not None:
        chain.check_unchanged(manifest)
        return chain, manifest
    require_space(bench.chains, bench.bytes_to_build(), f"the chain of the plan {plan.name}")
    with chain.lock(exclusive=True):
        if plan.chain.build == "offline":
            return chain, build_offline(plan.chain, chain, progress)
        progress.stage("preparing the guest")
        bench.kind.prepare()
        builder = LiveBuilder(plan, chain, bench.kind, bench.builder, bench.chosen.name, progress)
        return chain, builder.build()


def _guest_kind(
    plan: GuestPlan, qemu: Qemu, accelerator: Accelerator = "tcg", packages: tuple[str, ...] = ()
) -> GuestKind:
    """Return the kind of guest that a plan names, with the options that it gives."""

    def path(name: str) -> Path | None:
        return Path(name).expanduser() if name else None

    return guest_kind(
        plan.kind,
        qemu,
        accelerator=accelerator,
        suite=plan.suite or None,
        firmware=plan.firmware,
        kernel=path(plan.kernel),
        initrd=path(plan.initrd),
        append=plan.append,
        ssh_key=path(plan.ssh_key),
        ssh_user=plan.ssh_user,
        ssh_port=plan.ssh_port,
        directory=plan.directory or None,
        packages=packages,
    )
