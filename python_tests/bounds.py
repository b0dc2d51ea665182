"""Lower bounds on the time of the CUDA kernels on an H100, from bytes, arithmetic and issue slots:
the text of docs/cuda_bounds.md. Nothing here is measured on a GPU."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import sass
from resources import ROOT

PAGE = ROOT / "docs" / "cuda_bounds.md"

# H100 SXM, NVIDIA's data sheet: 67, 34 and 989 TFLOP/s; the clock is that of the first two.
PROCESSORS, CLOCK, BANDWIDTH = 132, 1.98e9, 3.35e12
SHARED = 128  # bytes per clock and multiprocessor
ISSUE = 4  # instructions of a warp per clock and multiprocessor
N, GATED_N, STEPS, TILE = 128, 64, 100, 8
ROWS = PROCESSORS * TILE


@dataclass
class Operation:
    """One operation's traffic per row, unit and step, in arrays of the elements' type and of that
    of computation."""

    name: str
    step: str  # with its template arguments; {}: the element type
    elements: int
    computed: int
    gates: int = 1

    @property
    def n(self) -> int:
        return N if self.gates == 1 else GATED_N


OPERATIONS = [
    Operation("forward", "ForwardStep<{}, false, false>", 2, 1),  # pre; y; phi
    Operation("backward, BPTT", "BackwardStep<{}, false, 0>", 2, 1),  # gy, phi; delta
    Operation("backward, ModProp", "BackwardStep<{}, false, 3>", 2, 1),
    Operation("forward tangent", "ForwardJvpStep<{}, false>", 2, 2),  # dpre, phi; dy, dphi
    Operation("backward tangent", "BackwardJvpStep<{}, false>", 2, 3),  # dgy, phi, dphi, lam
]
LOCAL = [Operation("backward, e-prop", "BackwardStep<{}, false, 1>", 2, 1)]
GATED = [
    Operation("GRU forward", "GatedForwardStep<{}, Gru>", 4, 4, 3),  # pre, y; aux
    Operation("GRU backward", "GatedBackwardStep<{}, Gru, 0>", 6, 4, 3),  # gy, y, delta; aux
    Operation("GRU forward tangent", "GatedForwardJvpStep<{}, Gru>", 6, 8, 3),
    Operation("GRU backward tangent", "GatedBackwardJvpStep<{}, Gru>", 7, 9, 3),
    Operation("LSTM forward", "GatedForwardStep<{}, Lstm>", 5, 5, 4),  # pre, y; aux
    Operation("LSTM backward", "GatedBackwardStep<{}, Lstm, 0>", 5, 5, 4),  # gy, delta; aux
    Operation("LSTM forward tangent", "GatedForwardJvpStep<{}, Lstm>", 5, 10, 4),
    Operation("LSTM backward tangent", "GatedBackwardJvpStep<{}, Lstm>", 5, 12, 4),
]
GATED_LOCAL = [
    Operation("GRU backward, local", "GatedBackwardStep<{}, Gru, 1>", 6, 4, 3),
    Operation("GRU backward, diagonal", "GatedBackwardStep<{}, Gru, 2>", 6, 4, 3),
    Operation("LSTM backward, local", "GatedBackwardStep<{}, Lstm, 1>", 5, 5, 4),
    Operation("LSTM backward, diagonal", "GatedBackwardStep<{}, Lstm, 2>", 5, 5, 4),
]

ALIF = [  # pre; z, psi / gz, psi; delta
    Operation("ALIF forward", "AlifForwardStep<{}, true>", 0, 3),
    Operation("ALIF backward, BPTT", "AlifBackwardStep<{}, true, 0>", 0, 3),
    Operation("LIF forward", "AlifForwardStep<{}, false>", 0, 3),
    Operation("LIF backward, BPTT", "AlifBackwardStep<{}, false, 0>", 0, 3),
]
ALIF_LOCAL = [
    Operation("ALIF backward, e-prop", "AlifBackwardStep<{}, true, 1>", 0, 3),
    Operation("ALIF backward, SnAp-1", "AlifBackwardStep<{}, true, 2>", 0, 3),
]


@dataclass
class Kind:
    """An element type: its names in C++ and torch, bytes of an element and of a number of its
    computation, the instruction of its products and how many multiply-adds that is for a warp,
    rows of a tile, and the card's FLOP/s."""

    name: str
    dtype: str
    element: int
    computed: int
    opcode: str
    work: int
    tile: int
    flops: float


KINDS = (
    Kind("float", "float32", 4, 4, "FFMA", 32, TILE, 66.9e12),
    Kind("double", "float64", 8, 8, "DFMA", 32, 4, 33.5e12),
    Kind("BFloat16", "bfloat16", 2, 4, "HMMA", 16 * 16 * 8, TILE, 989.4e12),
)


def microseconds(clocks_per_processor: float) -> float:
    return clocks_per_processor / CLOCK * 1e6


def traffic(operation: Operation, kind: Kind, steps: int) -> tuple[str, str, float, float]:
    """The first cells of a row: names, megabytes, and the microseconds to move them once."""
    width = operation.elements * kind.element + operation.computed * kind.computed
    size = ROWS * operation.n * steps * width
    return operation.name, kind.dtype, size / 1e6, size / BANDWIDTH * 1e6


def persistent(operation: Operation, code: sass.Code, kind: Kind) -> tuple[float, float, float]:
    """Microseconds of all steps: arithmetic, the matrix read from shared memory, and the issue
    slots of the products' loop (of several, the one that issues least beside products)."""
    body = sass.main_loop(code, kind.opcode)
    weights = operation.gates * operation.n**2
    issued = weights * TILE / kind.work * sass.instructions(body) / sass.count(body, kind.opcode)
    arithmetic = 2 * weights * ROWS * STEPS / kind.flops * 1e6
    shared = STEPS * weights * kind.element * TILE / kind.tile / SHARED
    return arithmetic, microseconds(shared), microseconds(STEPS * issued / ISSUE)


def at_most(operation: Operation, code: sass.Code, steps: int) -> float:
    """Microseconds of the issue slots of one thread per quad, every instruction counted."""
    warps = ROWS * operation.n / 4 / 32
    return microseconds(warps * steps * sass.instructions(code) / ISSUE / PROCESSORS)


def fill(text: str) -> str:
    return textwrap.fill(text, 115)


def _row(*cells: object) -> str:
    return "| " + " | ".join(f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells) + " |"


def persistent_table(
    code: dict[str, sass.Code], operations: list[Operation], kinds: Sequence[Kind] = KINDS
) -> list[str]:
    lines = [
        "| kernel | type | MB | memory | arithmetic | shared memory | issue slots |",
        "|---|---|---|---|---|---|---|",
    ]
    for operation in operations:
        for kind in kinds:
            body = code[f"persistent<{operation.step.format(kind.name)}, {kind.tile}>"]
            times = persistent(operation, body, kind)
            lines.append(_row(*traffic(operation, kind, STEPS), *times))
    return lines


def elementwise_table(
    code: dict[str, sass.Code],
    operations: list[Operation],
    columns: bool,
    kinds: Sequence[Kind] = KINDS,
) -> list[str]:
    """Of the kernel ``columns`` for all steps, or of ``pointwise`` for one."""
    lines = ["| kernel | type | MB | memory | issue slots, at most |", "|---|---|---|---|---|"]
    steps = STEPS if columns else 1
    for operation in operations:
        for kind in kinds:
            step = operation.step.format(kind.name)
            if columns:
                body = max(sass.loops(code[f"columns<{step} >"]), key=len)
            else:
                body = code[f"pointwise<{step}, 1>"]
            slots = at_most(operation, body, steps)
            lines.append(_row(*traffic(operation, kind, steps), slots))
    return lines


def alif_tables(code: dict[str, sass.Code]) -> list[str]:
    exact = KINDS[:2]  # half precision is computed in float32
    return [
        "## ALIF and LIF, persistent",
        "",
        fill(
            f"n = {N}; rows and steps as above. Without v and a of every step, which learned "
            "constants and the reset to zero ask for. The product of spikes costs what any does."
        ),
        "",
        *persistent_table(code, ALIF, exact),
        "",
        "## ALIF and LIF, columns",
        "",
        *elementwise_table(code, ALIF_LOCAL, columns=True, kinds=exact),
        "",
        "## ALIF and LIF, pointwise",
        "",
        "All surrogates, and all policies that multiply, counted as taken.",
        "",
        *elementwise_table(code, ALIF, columns=False, kinds=exact),
    ]


def page(code: dict[str, sass.Code], compiler: str) -> str:
    """The text, from the code for sm_90."""
    flops = 2 * N * N * ROWS * STEPS
    lines = [
        "# Lower bounds of the CUDA kernels on an H100",
        "",
        fill(
            f"Written by `make budget` from the machine code that nvcc {compiler} made for sm_90. "
            '**Not measured on a GPU**: but for columns headed "at most", each number is a time '
            "that the kernel cannot beat, and says nothing of how close it comes. Latencies (a "
            "barrier and a few dependent instructions per step) come on top. Bytes are those of "
            "the operation's arrays, each moved once."
        ),
        "",
        fill(
            f"Rate form with tanh, n = {N}, T = {STEPS}, {ROWS} rows: one tile of {TILE} rows for "
            f"each of {PROCESSORS} multiprocessors. H100 SXM: {BANDWIDTH / 1e12} TB/s, "
            "67 TFLOP/s in float32, 34 in float64, 989 in bfloat16 on tensor cores (NVIDIA's data "
            f"sheet); at {CLOCK / 1e9} GHz, per clock and multiprocessor, 128 bytes of shared "
            "memory and 4 instructions of a warp. Times in microseconds."
        ),
        "",
        "## LeakyRNN, persistent: all steps, one launch",
        "",
        fill(
            f"Products: {flops / 1e9:.2f} GFLOP. Shared memory: the matrix, once per tile (8 rows, "
            "4 in float64) and step. Issue slots: the loop of the products alone."
        ),
        "",
        *persistent_table(code, OPERATIONS),
        "",
        "## LeakyRNN, columns: rules that carry nothing from unit to unit, all steps, one launch",
        "",
        "Issue slots at most: every branch of the step (all nonlinearities) counted as taken.",
        "",
        *elementwise_table(code, LOCAL, columns=True),
        "",
        "## LeakyRNN, pointwise: one step of a stepwise run, beside the vendor's product",
        "",
        "Bytes: one step's arrays; what is kept between steps and the product may stay in cache.",
        "",
        *elementwise_table(code, OPERATIONS, columns=False),
        "",
        "## GRU and LSTM, persistent",
        "",
        fill(
            f"n = {GATED_N}, which fits in every type; 3 and 4 matrices. Rows and steps as above."
        ),
        "",
        *persistent_table(code, GATED),
        "",
        "## GRU and LSTM, columns",
        "",
        *elementwise_table(code, GATED_LOCAL, columns=True),
        "",
        "## GRU and LSTM, pointwise",
        "",
        *elementwise_table(code, GATED, columns=False),
        "",
        *alif_tables(code),
    ]
    return "\n".join(lines) + "\n"
