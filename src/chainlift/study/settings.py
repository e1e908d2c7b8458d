"""Settings of a study that it varies: each combination is measured as if it were a plan of its own."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from chainlift.study.plan_file import checked
from chainlift.study.plan_tables import VaryPlan
from chainlift.study.plan_text import size_text

if TYPE_CHECKING:
    from chainlift.study.plan import Plan

#: Keys of ``vary`` that are of the chain.
_OF_CHAIN = ("cluster_size", "size")
_SIZES = ("l2_cache_size", *_OF_CHAIN)


def settings_of(plan: Plan) -> dict[str, Plan]:
    """Return the plan of each combination of what is varied, by its name: ``cache=none, aio=native``.

    :return: the plan itself, named ``""``, where nothing is varied.
    :raise PlanError: if a combination does not hold.
    """
    varied = {key: values for key, values in plan.vary.model_dump().items() if values}
    if not varied:
        return {"": plan}
    found = {}
    for values in product(*varied.values()):
        chosen: dict[str, Any] = dict(zip(varied, values, strict=True))
        name = ", ".join(f"{key}={_text(key, value)}" for key, value in chosen.items())
        chosen["chain"] = plan.chain.model_copy(update={key: chosen.pop(key) for key in _OF_CHAIN if key in chosen})
        if "aio" in chosen:  # of host reads too
            chosen["host_read"] = plan.host_read.model_copy(update={"aio": ""})
        changed = plan.model_copy(update={**chosen, "vary": VaryPlan()})
        found[name] = checked(changed, name)
    return found


def _text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if key in _SIZES and isinstance(value, int):
        return size_text(value) if value else "default"
    return str(value)
