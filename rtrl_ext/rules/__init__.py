"""Learning rules: what they are, by object or by name.

``get`` turns a name into a rule, ``parse`` reads the command line's spelling ``name:key=value``,
``table`` lists them all.
"""

# the order of imports is the order of the table
# isort: off
from .base import Rule, get, known, parse, table
from .bptt import BPTT
from .tbptt import TBPTT
from .immediate import Immediate
from .eprop import EProp
from .snap1 import SnAp1
from .mdgl import MDGL
from .modprop import ModProp
from .rtrl import RTRL
from .snap import SnAp
from .uoro import UORO
from .kfrtrl import KFRTRL
from .ok import OK
from .kernl import KeRNL
from .dni import DNI
from .custom import Custom
from .wrappers import MatchedNoise, Projected, Scaled
# isort: on

__all__ = [
    "BPTT",
    "DNI",
    "KFRTRL",
    "MDGL",
    "OK",
    "RTRL",
    "TBPTT",
    "UORO",
    "Custom",
    "EProp",
    "Immediate",
    "KeRNL",
    "MatchedNoise",
    "ModProp",
    "Projected",
    "Rule",
    "Scaled",
    "SnAp",
    "SnAp1",
    "get",
    "known",
    "parse",
    "table",
]
