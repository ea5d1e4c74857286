"""Invented machines, links, models and questions for the tests of the search.

Coefficients are the defaults, nothing is corrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from hypothesis import strategies as st

from atoll.fleet import Fleet, Island
from atoll.model import Model
from atoll.planning.cost import Coefficients
from atoll.planning.machine import Machine
from atoll.planning.memory import MemoryCoefficients
from atoll.planning.options import Coefficient
from atoll.planning.problem import Place, Problem
from atoll.planning.work import Shape, Software, Work

FITTED = Coefficient(time=Coefficients(), memory=MemoryCoefficients())
BARE = replace(FITTED, time=Coefficients(state_behind=0.0))
"""Nothing of an exchange hides behind compute, so that it depends on the set of islands alone."""

INFINITE = float("inf")


def machine_at(index: int, **changes: object) -> Machine:
    """An invented machine; islands of different machines have different chips."""
    plain: dict[str, object] = {
        "chip": f"invented-{index}", "peak": {"bf16": 5e13}, "memory": 2e10,
        "memory_bandwidth": 1e12, "node_devices": 4, "domain": 4, "link": 2e11, "network": 2.5e10,
    }  # fmt: skip
    return Machine(**{**plain, **changes})


def problem_from(
    machines: Sequence[tuple[Machine, int, str]],
    model: Model,
    *,
    links: Mapping[tuple[str, str], tuple[float, float]],
    sites: Sequence[str] = ("s", "t", "u"),
    flash: bool = True,
    **asked: object,
) -> Problem:
    """Islands of (machine, nodes, site); `links` in bytes a second and seconds."""
    islands = [
        Island(name=f"i{index}", site=site, nodes=nodes)
        for index, (_, nodes, site) in enumerate(machines)
    ]
    fleet = Fleet.from_dict(
        {
            "site": [{"name": site} for site in sites],
            "island": [island.model_dump(exclude_none=True) for island in islands],
            "link": [
                {
                    "between": list(ends),
                    "bandwidth": f"{width:.0f} B/s",
                    "latency": f"{delay:.6f} s",
                }
                for ends, (width, delay) in links.items()
            ],
        }
    )
    shape = Shape.of(model)
    work = Work(shape=shape, sequence=model.context, software=Software(flash=flash))
    places = [
        Place(island=island, machine=machine, work=work)
        for island, (machine, _, _) in zip(islands, machines, strict=True)
    ]
    plain = {"grain": 1, "grains": 4, "every": "step", "round_steps": 10, "coefficients": FITTED}
    return Problem(places=places, fleet=fleet, **{**plain, **asked})


@st.composite
def machines_of(draw: st.DrawFn, index: int) -> tuple[Machine, int]:
    """A machine of at most 16 devices, and its nodes."""
    node = draw(st.sampled_from([1, 2, 4, 8]))
    machine = machine_at(
        index,
        peak={"bf16": draw(st.sampled_from([1e12, 5e12, 1e13, 5e13]))},
        memory=draw(st.sampled_from([1.7e9, 2e9, 3e9, 5e9, 2e10])),
        memory_bandwidth=draw(st.sampled_from([2e11, 1e12, 4e12])),
        node_devices=node,
        domain=draw(st.sampled_from([1, node])),
        link=draw(st.sampled_from([2e10, 4e11])),
        network=draw(st.sampled_from([3e9, 1e10, 5e10, 4e11])),
        mesh=draw(st.booleans()),
    )
    return machine, draw(st.integers(1, 16 // node))


@st.composite
def models(draw: st.DrawFn) -> Model:
    heads = draw(st.sampled_from([2, 4, 8]))
    return Model(
        layers=draw(st.integers(1, 8)),
        width=heads * draw(st.sampled_from([32, 64, 128])),
        heads=heads,
        ffn=draw(st.sampled_from([256, 512, 768, 1024])),
        context=draw(st.sampled_from([1024, 4096, 16384])),
        vocab=draw(st.sampled_from([256, 1024])),
        tied=draw(st.booleans()),
    )


WIDTHS = [1.25e8, 1.25e9, 1.25e10, 1.25e11]
DELAYS = [0.0, 1e-5, 1e-3]


@st.composite
def problems(
    draw: st.DrawFn, *, fewest: int = 1, num_sites: int | None = None, bare: bool | None = None
) -> Problem:
    """One to three islands at one to three sites, a small model, a few grains."""
    count = draw(st.integers(fewest, 3))
    sites = ("s", "t", "u")[: num_sites or draw(st.integers(1, 3))]
    machines = [(*draw(machines_of(index)), draw(st.sampled_from(sites))) for index in range(count)]
    links = {
        ends: (draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(DELAYS)))
        for ends in combinations(sites, 2)
        if draw(st.integers(0, 4))
    }
    if bare is None:
        bare = draw(st.booleans())
    return problem_from(
        machines,
        draw(models()),
        links=links,
        sites=sites,
        flash=draw(st.booleans()),
        grain=draw(st.integers(1, 4)),
        grains=draw(st.integers(1, 9)),
        every=draw(st.sampled_from(["step", "rounds"])),
        coefficients=BARE if bare else FITTED,
    )
