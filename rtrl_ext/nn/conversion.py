"""Exchange torch's recurrent modules for ours inside an existing model."""

from typing import Any

from torch import nn

from ..rules import Rule, get
from .base import RecurrentBase
from .gated import GRU, LSTM
from .leaky_rnn import LeakyRNN

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def convert(model: nn.Module, rule: str | Rule = "bptt") -> nn.Module:
    """Replace every ``torch.nn.RNN``, ``GRU`` and ``LSTM`` in ``model`` by ours, under ``rule``.

    An RNN becomes a `LeakyRNN` with ``leak=1``.

    The Parameter objects stay the same, so that existing optimizers keep working, and so do hooks
    and the training flag. A module that occurs at several places is replaced by one module.

    Returns ``model``, changed in place, or the new module if ``model`` itself is recurrent.
    Raises TypeError if ``model`` is no module, ValueError, naming the path, for what cannot be
    replaced: subclasses, parametrized modules, dropout, bidirectional or projected ones, and a rule
    that isn't defined for a module's cell, parameters under torch's older ``weight_norm``, buffers
    or submodules that were added. A refused call changes nothing. Modules of this library keep
    their rules.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    chosen = get(rule)
    made: dict[int, RecurrentBase] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            made[id(module)] = _converted(module, path or "the model itself", chosen)
    if id(model) in made:
        return made[id(model)]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and id(child) in made:
                module._modules[name] = made[id(child)]
    return model


def _converted(module: nn.RNNBase, path: str, rule: Rule) -> RecurrentBase:
    kind = type(module).__name__
    ours: dict[type, type[RecurrentBase]] = {nn.RNN: LeakyRNN, nn.GRU: GRU, nn.LSTM: LSTM}
    if type(module) not in ours:
        raise ValueError(
            f"{path} is a {kind}, a subclass of torch's; expected torch.nn.RNN, GRU or LSTM itself"
        )
    cls = ours[type(module)]
    several = module.num_layers > 1  # dropout between layers has no effect in one
    options: dict[str, Any] = {
        "dropout": (module.dropout if several else 0.0, 0.0),
        "bidirectional": (module.bidirectional, False),
        "proj_size": (module.proj_size, 0),
    }
    for name, (came, expected) in options.items():
        if came != expected:
            raise ValueError(
                f"{path} has {name}={came}; expected {expected}, as {cls.__name__} has none"
            )
    added = [*module._buffers, *module._modules]
    if added:
        raise ValueError(f"{path} has {', '.join(added)} beside its parameters; expected none")
    missing = [n for names in module._all_weights for n in names if n not in module._parameters]
    if missing:
        raise ValueError(f"{path} has no parameter {missing[0]}; expected it not to be replaced")
    try:
        rule.check(cls.cell, module.hidden_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    new: RecurrentBase
    sizes = (module.input_size, module.hidden_size, module.num_layers)
    if isinstance(module, nn.RNN):
        new = LeakyRNN(
            *sizes, module.nonlinearity, bool(module.bias), module.batch_first,
            rule=rule, device="meta",
        )  # fmt: skip
    else:
        new = (GRU if isinstance(module, nn.GRU) else LSTM)(
            *sizes, bool(module.bias), module.batch_first, rule=rule, device="meta"
        )
    weight = module.all_weights[0][0]
    new.to_empty(device=weight.device).to(weight.dtype)
    for name in [n for names in new._all_weights for n in names]:
        setattr(new, name, getattr(module, name))
    new.train(module.training)
    for name in _HOOKS:
        setattr(new, name, getattr(module, name))
    return new
