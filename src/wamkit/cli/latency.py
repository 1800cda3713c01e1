"""`wamkit latency`: the time of a query, by part."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import AtMost, Between, Count

Pixels = Annotated[int, Between(1, 4095)]


@dataclass(frozen=True)
class Latency(Options):
    """Measure how long a query takes, by part, batch 1, with percentiles.

    Writes latency/summary.json into the run folder; the run's report shows it from then on.
    """

    run: Path
    """Run folder, or file of `wamkit export`."""
    _: KW_ONLY
    queries: tuple[str, ...] = ("policy",)
    """Queries to time."""
    image: tuple[Pixels, Pixels] = (224, 224)
    """Height and width of the cameras' images."""
    steps: Count | None = None
    """Denoising steps a query; the model's own number if not given."""
    repeats: Annotated[int, Between(10, inf), AtMost(10**6)] = 100
    """Queries of each kind that are timed, after a tenth as many to warm up."""
    device: str = "cpu"
    """Device of the model."""
    threads: Annotated[int, Between(1, 1024)] | None = None
    """CPU threads of the model; torch's own number if not given."""
    embodiment: str = ""
    """Data set of a mixture whose robot asks."""


@COMMANDS.register("latency")
def run(args: Latency) -> None:
    """Times the queries, prints a table and writes it.

    Raises WamkitError for a model of scene points, for which no robot can ask.
    """
    from wamkit.errors import WamkitError
    from wamkit.files import check_place
    from wamkit.runs.config import home, require_run
    from wamkit.types import Query

    queries = tuple(Query(q) for q in args.queries)
    if not queries:
        raise WamkitError("name at least one query: --queries policy")
    path = require_run(args.run)
    place = home(path) / "latency/summary.json"
    check_place(place)
    import torch

    from wamkit.eval.outputs import write_result
    from wamkit.eval.report.latency import lines
    from wamkit.inference.model import load
    from wamkit.runs.run import Run
    from wamkit.serving.inputs import Inputs
    from wamkit.serving.latency import query_parts, request, transport
    from wamkit.types import UnsupportedQuery

    if args.threads:
        torch.set_num_threads(args.threads)
    opened = Run.open(path)
    embodiment = args.embodiment or opened.provenance.env.embodiment
    model = load(opened, args.device, embodiment)
    if model.spec.point_grid:
        raise WamkitError(f"this '{model.name}' looks at scene points, for which the protocol has no entry")
    if unable := [q for q in queries if q not in model.queries]:
        raise UnsupportedQuery(f"this '{model.name}' does not answer '{unable[0]}'; it answers {sorted(model.queries)}")
    inputs = Inputs.of(opened, embodiment)
    from dataclasses import replace

    past = (None,) * len(model.spec.past_offsets)
    asked = [replace(inputs.read(request(inputs, model, args.image, seed)), past=past) for seed in range(4)]
    found = []
    for query in queries:
        parts = query_parts(model, asked, query, steps=args.steps, repeats=args.repeats)
        if query in (Query.POLICY, Query.JOINT):
            parts["parts"]["transport"] = vars(transport(model, inputs, query, args.image, args.repeats))
        what = {"image": list(args.image), "cameras": len(inputs.cameras), "threads": torch.get_num_threads()}
        found.append(parts | what)
    for line in lines(found):
        print(line)
    write_result(place, {"run": opened.label, "weights": opened.digest, "queries": found})
    print(place)
