"""The leading 5 eigenpairs end to end, and scripts of other libraries on our cells and torch's.

Everyone solves the same problem: Hessian of the cross-entropy of a classifier with 10 classes over
all its parameters, at the weights of torch's initialisation. Each result's largest residual norm,
relative to the largest eigenvalue, is taken by our operator and printed: ours is asked for 1e-3,
SciPy's ARPACK for its `tol` of 1e-3, PyHessian for its own default, a change of 1e-3 of each
eigenvalue, which leaves larger residuals. So ours is timed a second time, asked for the residual
that PyHessian left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .. import ours
from ..harness import Contestant
from ..peers import sharpness as peers
from ..problem import Case
from ..results import Row
from ..settings import Settings
from .common import CELLS, cases_by_length, run_case

SUITE = "eigenpairs"
PAIRS, RESIDUAL = 5, 1e-3
#: times faster, end to end, than curvlinops with SciPy and than PyHessian
FASTER = {"RNN": 3.0, "GRU": 3.0, "LSTM": 5.0}
#: times faster that a script of theirs is on our cells than on torch's
SCRIPT_FASTER = 2.0
#: largest relative difference of the eigenvalues of a peer, which stop at looser tolerances
AGREE = 0.02


def networks(cell: str, case: Case) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """The classifier with our layer, with torch's, inputs and labels."""
    data = ours.tensors(case)
    params = ours.params_of(data)
    layer = ours.module(params, "bptt") if cell == "RNN" else ours.cell_module(cell, params, "bptt")
    theirs = peers.Classifier(peers.torch_layer(cell, params), case)
    return peers.Classifier(layer, case), theirs, data["x"], peers.labels(case)


def residual(operator: Any, pairs: tuple[Tensor, Tensor]) -> float:
    values, vectors = (t.float() for t in pairs)
    worst = (operator @ vectors - vectors * values).norm(dim=0).max()
    return float(worst / values.abs().max())


def of_cell(s: Settings, cell: str, case: Case) -> list[Contestant]:
    """Ours, the peers on torch's layer, and their scripts on both."""
    import rtrl_ext as rx

    model, theirs, x, y = networks(cell, replace(case, G=CELLS[cell]))

    def operator() -> Any:
        return rx.curvature.Hessian(model, nn.CrossEntropyLoss(), (x, y))

    exact = operator()

    def eigsh(name: str, tol: float, *slower: str) -> tuple[Contestant, tuple[Tensor, Tensor]]:
        def call() -> Any:
            return operator().eigsh(k=PAIRS, tol=tol)

        result = call()
        pairs = result.values, result.vectors
        info = {"tol": tol, "residual": residual(exact, pairs), "products": result.num_products}
        faster = {f"{cell} {peer}": FASTER[cell] for peer in slower}
        one = Contestant(f"{cell} {name}", call, ours=True, info=info, faster_than=faster)
        return one, pairs

    one, pairs = eigsh("eigsh", RESIDUAL, "curvlinops, SciPy", "PyHessian")
    found = [one]
    if s.peers == "none":
        return found

    def compare(got: tuple[Any, Any], info: dict[str, Any]) -> float:
        info["residual"] = residual(exact, got)
        worst = float(((got[0].float() - pairs[0]) / pairs[0]).abs().max())
        info["eigenvalues off by"] = worst
        return 0.0 if worst < AGREE or "PyHessian" in info["who"] else worst

    for name, package, make in (
        ("curvlinops, SciPy", "curvlinops", peers.curvlinops_eigenpairs),
        ("PyHessian", "pyhessian", peers.pyhessian_eigenpairs),
    ):
        if not s.has(package) or not s.has("scipy"):
            continue
        more: dict[str, Any] = {"who": name}
        s.add_checked(
            found, f"{cell} {name}",
            lambda make=make: make(theirs, x, y, PAIRS, RESIDUAL),  # type: ignore[misc]
            lambda got, more=more: compare(got, more), info=more,  # type: ignore[misc]
        )  # fmt: skip
        if name == "PyHessian" and "residual" in more:
            found.append(eigsh("eigsh, PyHessian's residual", more["residual"], name)[0])
    return found


def scripts(s: Settings, cell: str, case: Case) -> list[Contestant]:
    """Each script on our cell, timed against the same on torch's."""
    model, theirs, x, y = networks(cell, replace(case, G=CELLS[cell]))
    found: list[Contestant] = []
    for name, package, make in (
        ("PyHessian script", "pyhessian", peers.pyhessian_script),
        ("curvlinops script", "curvlinops", peers.curvlinops_script),
    ):
        if s.peers == "none" or not s.has(package):
            continue
        mine, other = f"{cell} {name}", f"{cell} {name}, torch's layer"
        s.add_checked(
            found, mine, lambda make=make: make(model, x, y), None, ours=True,  # type: ignore[misc]
            faster_than={other: SCRIPT_FASTER},
        )  # fmt: skip
        s.add_checked(found, other, lambda make=make: make(theirs, x, y), None)  # type: ignore[misc]
    return found


def run(s: Settings) -> list[Row]:
    """Rows for every cell and chosen n at T = 50 and 200, B = 32."""
    rows: list[Row] = []
    for case in cases_by_length(s):
        for cell in CELLS:
            rows += run_case(s, SUITE, case, [*of_cell(s, cell, case), *scripts(s, cell, case)])
    return rows
