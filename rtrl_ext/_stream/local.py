"""The learner of a rule whose credit stays in its unit."""

from ..reference.leaky_rnn import LOCAL
from .hops import Hops
from .learner import Learner, Setting
from .rank_one import RankOne
from .traces import Traces


def unit_local(setting: Setting, *, filtered: float = 0.0, hops: Hops | None = None) -> Learner:
    """E-prop's traces, as an outer product where they are one; see `Traces`."""
    if setting.rank_one and not filtered:
        return RankOne(setting, decay=float(setting.uniform or 0.0), hops=hops)
    return Traces(setting, policy=LOCAL, filtered=filtered, hops=hops)
