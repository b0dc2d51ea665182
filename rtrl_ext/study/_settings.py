"""The settings of a run: everything about it but its rule, arm and seed."""

from dataclasses import dataclass

import numpy as np

from .. import tasks
from ..tasks.checks import choice

OPTIMIZERS = ("sgd", "adam")
CURVATURE = ("lanczos", "power", "none")
CELLS = ("leaky", "alif")

#: largest count among the settings
MOST = 2**31 - 1


class SettingError(ValueError):
    """A setting that does not fit the data; the message begins with its name."""


@dataclass(frozen=True)
class Settings:
    """Everything about a run but its rule, arm and seed; ``ValueError`` on values out of range.

    ``task`` is a name with options, as `rtrl_ext.tasks.parse` takes it; ``shift`` the named shift
    of the test set that is followed along training (``shift_noise``: its size, of seqmnist);
    ``dale`` the share of excitatory units under Dale's law (0: without it); ``tau_v``, ``tau_a``
    (ms) and ``beta`` belong to the cell ``alif``, half of whose units adapt, ``leak`` and
    ``nonlinearity`` to ``leaky``. ``leak`` is κ in (0, 1]; ``lr`` is η; ``l2`` the factor of
    ``½‖θ‖²`` over all parameters; ``stop_loss`` the full training loss that ends a run (None:
    never); ``every`` counts are iterations.

    ``gain`` multiplies the recurrent matrix at the start, whose ``rank`` (None: full) is cut at an
    unchanged Frobenius norm. The rate is ``lr_factor lr`` for the first share ``lr_fraction`` of
    ``iterations``. ``clip_norm`` bounds the norm of a gradient (None: unbounded). ``sam_rho`` is
    the radius of SAM (0: off). ``label_noise`` is the probability that a training label is replaced
    by a random class, of regression the standard deviation of noise on the targets.
    ``density_probes`` random vectors measure the density of the spectrum at the end (0: not).
    """

    task: str = "seqmnist"
    data: str | None = None
    train_size: int | None = 1000
    test_size: int | None = 4000
    shift: str = "noise"
    shift_noise: float = 0.2
    cell: str = "leaky"
    hidden_size: int = 128
    nonlinearity: str = "relu"
    form: str = "rate"
    leak: float = 0.5
    dale: float = 0.0
    tau_v: float = 20.0
    tau_a: float = 2000.0
    beta: float = 0.0174
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 3e-2
    momentum: float = 0.0
    l2: float = 1e-4
    iterations: int = 2500
    stop_loss: float | None = 0.3
    eval_every: int = 20
    test_every: int = 200
    alignment_every: int = 1
    curvature: str = "lanczos"
    curvature_batch: int = 256
    curvature_products: int = 15
    curvature_points: int = 40
    curvature_budget: float = 0.1
    final_products: int = 60
    trace_products: int = 30
    sharpness_num: int = 0
    gain: float = 1.0
    rank: int | None = None
    lr_factor: float = 1.0
    lr_fraction: float = 0.0
    clip_norm: float | None = None
    sam_rho: float = 0.0
    label_noise: float = 0.0
    density_probes: int = 0

    def __post_init__(self) -> None:
        for name, low in _COUNTS.items():
            value = getattr(self, name)
            if value is None and name in ("train_size", "test_size", "rank"):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: got {value!r}, expected an int")
            if value < low:
                raise ValueError(f"{name}: got {value}, expected at least {low}")
            if value > MOST:
                raise ValueError(f"{name}: got {value}, expected at most {MOST}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None and name in ("stop_loss", "clip_norm"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}: got {value!r}, expected a number")
            if name == "leak":
                if not 0 < value <= 1:
                    raise ValueError(f"leak: got {value}, expected a number in (0, 1]")
            elif not (value >= 0 and np.isfinite(value)):
                raise ValueError(f"{name}: got {value}, expected a finite number of at least 0")
            object.__setattr__(self, name, float(value))
        self._check_task()
        if self.lr == 0:
            raise ValueError("lr: got 0, expected a rate above 0")
        if self.momentum >= 1:
            raise ValueError(f"momentum: got {self.momentum}, expected below 1")
        for name, legal in (
            ("cell", CELLS),
            ("optimizer", OPTIMIZERS),
            ("curvature", CURVATURE),
            ("form", ("rate", "voltage")),
            ("nonlinearity", ("tanh", "relu", "softplus", "identity")),
        ):
            if getattr(self, name) not in legal:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(legal)}"
                )
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum: got {self.momentum} with {self.optimizer}, expected sgd")
        if self.test_every % self.eval_every:
            raise ValueError(
                f"test_every: got {self.test_every}, expected a multiple of eval_every "
                f"({self.eval_every})"
            )
        if self.cell == "alif":
            if self.curvature != "none":
                raise ValueError(
                    f"curvature: got {self.curvature!r} with spiking units, expected none: they "
                    "have no second derivatives (sharpness_num: by perturbation)"
                )
            if self.dale:
                raise ValueError(f"dale: got {self.dale} with the cell alif, expected 0")
            for name in ("tau_v", "tau_a"):
                if getattr(self, name) == 0:
                    raise ValueError(f"{name}: got 0, expected a time above 0")
        if self.dale >= 1:
            raise ValueError(f"dale: got {self.dale}, expected 0 or a share below 1")
        if self.sharpness_num == 1:
            raise ValueError("sharpness_num: got 1, expected 0 or at least 2")
        self._check_remedies()
        self._check_start()

    def _check_remedies(self) -> None:
        for name in ("lr_factor", "clip_norm"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name}: got 0, expected a number above 0")
        if self.lr_fraction > 1:
            raise ValueError(f"lr_fraction: got {self.lr_fraction}, expected a share of at most 1")
        if (self.lr_factor != 1) != (self.lr_fraction > 0):
            raise ValueError(
                f"lr_factor: got {self.lr_factor} with lr_fraction {self.lr_fraction}, expected "
                "both a factor other than 1 and a share above 0, or neither"
            )
        classes = tasks.get(tasks.parse(self.task)[0]).metric_name == "accuracy"
        if classes and self.label_noise > 1:
            raise ValueError(
                f"label_noise: got {self.label_noise}, expected a probability (the task has "
                "classes)"
            )
        if self.density_probes and self.curvature == "none":
            raise ValueError(
                f"density_probes: got {self.density_probes} with curvature none, expected 0"
            )

    def _check_start(self) -> None:
        if self.gain == 0:
            raise ValueError("gain: got 0, expected a factor above 0")
        if self.rank is not None:
            if self.rank > self.hidden_size:
                raise ValueError(
                    f"rank: got {self.rank}, expected at most hidden_size ({self.hidden_size})"
                )
            if self.dale:
                raise ValueError(
                    f"rank: got {self.rank} with dale {self.dale}, expected none: a matrix of low "
                    "rank does not keep the signs of Dale's law"
                )

    def _check_task(self) -> None:
        name, options = tasks.parse(self.task)
        for key, setting in _OWN.items():
            if key in options:
                raise ValueError(f"task: {key} in {self.task!r}, expected the setting {setting}")
        if name != "seqmnist":
            if self.data is not None:
                raise ValueError(f"data: got {self.data!r} with {name}, expected none")
            if self.shift_noise:
                raise ValueError(
                    f"shift_noise: got {self.shift_noise} with {name}, expected 0; its shifts have "
                    "names (shift)"
                )
        choice("shift", self.shift, tasks.get(name).shifts or ("none",))


_NUMBERS = (
    "shift_noise", "lr", "momentum", "l2", "leak", "curvature_budget", "stop_loss", "dale",
    "tau_v", "tau_a", "beta", "gain", "lr_factor", "lr_fraction", "clip_norm", "sam_rho",
    "label_noise",
)  # fmt: skip
#: options of tasks that runs take from their settings
_OWN = {
    "num_train": "train_size", "num_test": "test_size", "shift": "shift", "data": "data",
    "dtype": "of float32, which runs use",
}  # fmt: skip
_COUNTS = {
    "train_size": 1, "test_size": 1, "hidden_size": 1, "batch_size": 1, "iterations": 1,
    "eval_every": 1, "test_every": 1, "alignment_every": 1, "curvature_batch": 1,
    "curvature_products": 1, "curvature_points": 1, "final_products": 1, "trace_products": 2,
    "sharpness_num": 0, "rank": 1, "density_probes": 0,
}  # fmt: skip
