"""Switches that hold across layers: exact gradients, a rule imposed on the backward pass, and rules
whose gradients can be differentiated.

Plain module variables, not thread-local: autograd may run backward formulas in threads of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

# (recurrent weight ((L,) n, n), leak ((L,) n)) -> the keyword arguments of _dispatch.leaky_core
# that make up a rule: policy, transport, mu, window, decay, modulator
PolicyOf = Callable[[Tensor, Tensor], dict[str, Any]]

_exact = 0
_override: PolicyOf | None = None
_explicit = 0


def exact_enabled() -> bool:
    """Whether a forward call made now is to be differentiated by BPTT with symmetric feedback."""
    return _exact > 0


@contextmanager
def exact_gradients() -> Iterator[None]:
    """Forward calls inside are differentiated by BPTT with symmetric feedback, whatever the rule.

    What counts is where the forward call was made: ``backward`` may run outside (but for
    ``torch.utils.checkpoint`` with ``use_reentrant=True``, which makes the forward call again in
    the backward pass: use its other form). It holds for all threads.
    """
    global _exact
    _exact += 1
    try:
        yield
    finally:
        _exact -= 1


def backward_override() -> PolicyOf | None:
    """What ``override_rule`` has set, or None."""
    return _override


@contextmanager
def override_rule(policy_of: PolicyOf) -> Iterator[None]:
    """Backward passes that run inside use ``policy_of(w, leak)`` instead of their own rule.

    For diagnostics: several rules' gradients from one forward pass (``retain_graph=True``). Takes
    precedence over ``exact_gradients``; has no effect on compiled graphs.
    """
    global _override
    before, _override = _override, policy_of
    try:
        yield
    finally:
        _override = before


def explicit() -> bool:
    """Whether `explicit_rules` is in force."""
    return _explicit > 0


def constant(x: Tensor) -> Tensor:
    """``x`` as a rule's matrices depend on it: detached, but for `explicit_rules`."""
    return x if _explicit else x.detach()


@contextmanager
def explicit_rules() -> Iterator[None]:
    """Inside, a rule's gradient is an explicit function that ``torch.func`` can differentiate.

    For the Jacobian of a rule's gradient field, which is no Hessian. Backward recursions under
    biased rules run as the reference in plain PyTorch, with every matrix that the rule makes of the
    weights live; nothing is refused. Under transforms only (``jvp(grad(loss))``).
    """
    global _explicit
    _explicit += 1
    try:
        yield
    finally:
        _explicit -= 1
