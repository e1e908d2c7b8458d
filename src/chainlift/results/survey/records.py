r"""The lines of a survey's file, each a JSON object whose ``kind`` says which of these it is.

The first is a :class:`Head`; a :class:`Chain` or :class:`Trouble` for each thing that was looked at is added as it was
done; the last is an :class:`End`, without which the survey was interrupted, and is continued by the next one that is
given the same file. Units are in the names: ``_s`` seconds, ``_bytes`` bytes.

A name of a file that is no UTF-8 has ``\xff`` for such a byte; the commands have it as a shell reads it.

History of :data:`SCHEMA`: 1, the first.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

SCHEMA: Final = 1

Level = Literal["note", "warning", "problem"]


class _Frozen(BaseModel):
    # Keys may be added, and are skipped by who does not know them (docs/json.md).
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class _Line(_Frozen):
    schema_version: Literal[1] = Field(1, alias="schema", description="The number of this form.")


class Source(_Frozen):
    """A place that was searched."""

    host: str = Field(description="the host's name; of a fleet the resource of its workers, * for any")
    path: str = Field(description="a directory or an image, symbolic links resolved")


class Head(_Line):
    """What was asked for: the first line, and once more where an interrupted survey goes on."""

    kind: Literal["survey"] = Field("survey", description="which line this is")
    chainlift: str = Field(description="the version that wrote this")
    started_at: AwareDatetime = Field(description="when it began")
    sources: tuple[Source, ...] = Field(description="the directories and images that were searched")
    policy: str = Field("", description="which snapshots are to stay, as options of chainlift prune; empty: all")
    qemu: str = Field("", description="whose costs are predicted, as its -version prints it; empty: none are")
    model: str = Field("", description="where the figures of the prediction come from")


class Use(_Frozen):
    """A disk of a libvirt domain."""

    domain: str = Field(description="its name")
    target: str = Field(description="the disk: vda")
    is_running: bool = Field(description="whether the domain runs")


class Found(_Frozen):
    """Something that a person should know of a chain."""

    level: Level = Field(description="how bad it is")
    what: str = Field(description="what is the case, a phrase")
    action: str = Field("", description="what to do")


class Cost(_Frozen):
    """What the model predicts, and between what it is in nine of ten cases; null where it does not know."""

    read_4k_cpu_s: float | None = Field(None, description="CPU time of a random read of 4 KiB")
    read_4k_cpu_s_low: float | None = Field(None, description="the least that it is in nine of ten cases")
    read_4k_cpu_s_high: float | None = Field(None, description="the most")
    read_64k_cpu_s: float | None = Field(None, description="CPU time of a random read of 64 KiB")
    read_64k_cpu_s_low: float | None = Field(None, description="the least that it is in nine of ten cases")
    read_64k_cpu_s_high: float | None = Field(None, description="the most")
    memory_bytes: float | None = Field(None, description="of QEMU for this chain, when all of the disk was read")
    memory_bytes_low: float | None = Field(None, description="the least that it is in nine of ten cases")
    memory_bytes_high: float | None = Field(None, description="the most")
    open_cpu_s: float | None = Field(None, description="CPU time to open the chain")
    open_cpu_s_low: float | None = Field(None, description="the least that it is in nine of ten cases")
    open_cpu_s_high: float | None = Field(None, description="the most")


class Advice(_Frozen):
    """What to do first about a chain, and what that gives back."""

    verb: Literal["index", "squash", "prune"] = Field(description="the verb of chainlift that does it")
    command: str = Field(description="for a POSIX shell; empty where somebody else's tool has to do it")
    why: str = Field("", description="why this, or why there is no command; a phrase")
    length: int = Field(description="layers over the base that are left to walk")
    cost: Cost | None = Field(None, description="predicted afterwards")
    frees_bytes: int = Field(0, description="of the file system, at most")
    snapshots: int = Field(0, description="snapshots that go")


class Chain(_Line):
    """One chain: an active layer, and all that it stands on."""

    kind: Literal["chain"] = Field("chain", description="which line this is")
    host: str = Field(description="the host that sees it")
    path: str = Field(description="the active layer")
    stamp: str = Field(description="the same as long as no file of the chain was changed")
    base: str = Field(description="what is at the bottom, as far as it can be followed")
    shared_base: str | None = Field(None, description="the uppermost layer that other chains stand on, too")
    shared_by: int = Field(0, description="chains that stand on it")
    uses: tuple[Use, ...] = Field((), description="libvirt's disks with this active layer")
    held_by: str = Field("", description="who has it open")
    is_running: bool = Field(description="whether a QEMU has it open for writing, or a running domain names it")
    modified_at: AwareDatetime = Field(description="of the active layer")
    lift: Literal["index", "squash"] | None = Field(None, description="the lift that it stands on")
    length: int = Field(description="layers over the base")
    virtual_size_bytes: int = Field(description="of the disk")
    disk_bytes: int = Field(description="what the files take that no other chain stands on")
    shared_bytes: int = Field(0, description="what the others take")
    visible_bytes: int = Field(description="content that can be read")
    shadowed_bytes: int = Field(description="content that is stored and that nobody can read through this chain")
    own_shadowed_bytes: int = Field(description="of that, what lies in layers that no other chain stands on")
    l2_cache_bytes: int = Field(description="of QEMU, when all of the disk was read")
    mean_depth: float = Field(description="layers that a read falls through, on average over all bytes of the disk")
    fall_bytes: tuple[int, ...] = Field(
        description="bytes that are found after 0, 1, 2-3, 4-7, 8-15, ... layers were passed"
    )
    unwritten_bytes: tuple[int, ...] = Field(description="the same of bytes that no layer has")
    crash_layers: int | None = Field(None, description="layers beyond which the QEMU of the model dies of a read")
    libvirt_longest: int | None = Field(None, description="layers with which the host's libvirt starts a domain on it")
    findings: tuple[Found, ...] = Field((), description="the worst first")
    broken: str | None = Field(None, description="why it ends too early; what is said is then of the layers above")
    cost: Cost | None = Field(None, description="today")
    advice: Advice | None = Field(None, description="what to do first; without, nothing is worth it")
    took_s: float = Field(description="to look at it")

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others, day after day."""
        return self.host, self.path


class Trouble(_Line):
    """Something that could not be looked at."""

    kind: Literal["trouble"] = Field("trouble", description="which line this is")
    host: str = Field(description="where")
    path: str = Field(description="a directory, an image, or libvirt")
    what: str = Field(description="what is wrong, a phrase")
    left_out: bool = Field(default=True, description="whether something is missing now; else it went meanwhile")


class Place(_Line):
    """A place that a worker of a fleet has been through."""

    kind: Literal["place"] = Field("place", description="which line this is")
    asked: Source = Field(description="as the survey's head has it")
    source: Source = Field(description="the host that it was")
    images: int = Field(description="qcow2 images that were found")
    chains: int = Field(description="active layers among them")
    disk_bytes: int = Field(description="what all files take, each once")
    took_s: float = Field(description="how long it took")
    peak_bytes: int = Field(description="memory of the largest process")
    model: str = Field("", description="where the figures of the host's prediction come from")


class End(_Line):
    """The survey is complete, but for what it says was left out."""

    kind: Literal["end"] = Field("end", description="which line this is")
    ended_at: AwareDatetime = Field(description="when it ended")
    images: int = Field(description="qcow2 images that were found")
    chains: int = Field(description="active layers among them")
    disk_bytes: int = Field(description="what all files take, each once")
    left_out: int = Field(description="things that could not be looked at")
    took_s: float = Field(description="how long it took")
    peak_bytes: int = Field(description="memory of the largest process")


#: A line.
Record = Head | Chain | Trouble | Place | End
RECORD: Final[TypeAdapter[Record]] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a line; ``chainlift/schemas/survey.json`` holds it."""
    made = RECORD.json_schema(by_alias=True, mode="validation")
    for part in made["$defs"].values():
        part.setdefault("required", [])
        for value in part["properties"].values():
            value.pop("title", None)
    lines = [made["$defs"].pop(model.__name__) for model in (Head, Chain, Trouble, Place, End)]
    for line in lines:
        line["required"] = ["schema", "kind", *line["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of the file that a survey writes.",
        "verbs": ["chainlift survey"],
        "oneOf": lines,
        "$defs": made["$defs"],
    }


def bin_of(depth: int) -> int:
    """Return the place in ``fall_bytes`` of a depth: 0, 1, 2 for 2 and 3, 3 for 4 to 7."""
    return depth.bit_length()


def bin_label(number: int) -> str:
    """Return which depths are counted in a place of ``fall_bytes``: ``0``, ``1``, ``2-3``, ``4-7``."""
    if number < 2:
        return str(number)
    return f"{1 << (number - 1)}-{(1 << number) - 1}"
