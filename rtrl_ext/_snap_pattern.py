"""Which entries of the influence matrix SnAp(k) keeps, and where they lie."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

#: Connected pairs of a pattern aren't listed one by one if they are more than this share of all
#: pairs: a full matrix product is faster then.
_WHOLE = 0.5


@dataclass(frozen=True, eq=False)
class Pattern:
    """SnAp's sparse influence of one block of parameters. Menick et al. 2021.

    Unit p owns the rows r = g n + p of a block (R, Q), R = G n. Kept are d state / d parameter of
    the states of ``K_p``, the units reached from p in at most k-1 hops, p itself first, for p's own
    columns ``C_p``: in memory a dense block (S |K_p|, G |C_p|), rows ordered (s, i-th unit of K_p),
    columns (g, c-th column of C_p). An influence is (B, size), a row of it the blocks of p = 0 to
    n-1 one after the other. Made by `snap_pattern`.

    units: all ``K_p`` (int32), those of p from ``unit_at[p]`` on; unit_at (n+1,) int64.
    columns, column_at: the same for ``C_p``, ascending.
    links: for each entry of ``units`` the places in its ``K_p`` of the units it hears of, those of
        entry e from ``link_at[e]`` on; none at all where every unit of ``K_p`` may hear of every
        other. link_pairs: of each link its place in ``pairs``, int32 (2, connections): which unit
        hears of which, itself included.
    at: (n+1,) int64, first number of each block.
    """

    n: int
    k: int
    states: int
    gates: int
    num_columns: int
    units: Tensor
    unit_at: Tensor
    columns: Tensor
    column_at: Tensor
    links: Tensor
    link_at: Tensor
    link_pairs: Tensor
    pairs: Tensor
    at: Tensor
    size: int
    most_units: int
    _moved: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> int:
        """R, rows of the block of parameters."""
        return self.gates * self.n

    def tensors(self, device: torch.device) -> tuple[Tensor, ...]:
        """The lists, in the order of their fields, on a device, kept there."""
        found = self._moved.get(device)
        if found is None:
            own = (
                self.units, self.unit_at, self.columns, self.column_at, self.links, self.link_at,
                self.link_pairs, self.pairs.reshape(-1), self.at,
            )  # fmt: skip
            found = self._moved[device] = tuple(x.to(device) for x in own)
        return found

    def zeros(
        self,
        batch: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """An influence (batch, size) of nothing."""
        return torch.zeros(batch, self.size, dtype=dtype, device=device)

    @cached_property
    def _places(self) -> Tensor:
        """Place of each number of a row in the dense (S n, R, Q), flat."""
        found = []
        for p in range(self.n):
            near = self.units[self.unit_at[p] : self.unit_at[p + 1]].long()
            own = self.columns[self.column_at[p] : self.column_at[p + 1]].long()
            state = torch.cat([near + s * self.n for s in range(self.states)])
            row = torch.arange(self.gates) * self.n + p
            place = (state[:, None] * self.rows + row)[..., None] * self.num_columns + own
            found.append(place.reshape(-1))
        return torch.cat(found)

    def dense(self, influence: Tensor) -> Tensor:
        """An influence (B, size) as a whole matrix (B, S n, R, Q), zero outside the pattern."""
        shape = self.states * self.n, self.rows, self.num_columns
        out = influence.new_zeros(influence.shape[0], self.states * self.n * self.rows * shape[2])
        out[:, self._places.to(influence.device)] = influence
        return out.reshape(influence.shape[0], *shape)

    def kept(self) -> Tensor:
        """The entries that are kept, bool (S n, R, Q)."""
        return self.dense(torch.ones(1, self.size))[0] != 0


def reachable(mask: Tensor, k: int) -> Tensor:
    """(n, n) bool: entry [p, u] tells whether u is reached from p in at most k-1 hops.

    mask (n, n), True = connected, row = postsynaptic: a hop goes from p to u where mask[u, p].
    """
    n = mask.shape[0]
    step = (mask.T | torch.eye(n, dtype=torch.bool)).to(torch.float32)
    reach = torch.eye(n, dtype=torch.float32)
    for _ in range(k - 1):
        more = ((reach @ step) > 0).to(torch.float32)
        if torch.equal(more, reach):
            break
        reach = more
    return reach > 0


def _offsets(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).int() if parts else torch.zeros(0, dtype=torch.int32)


def make_pattern(
    mask: Tensor, k: int, states: int, gates: int, columns: Tensor, whole: float = _WHOLE
) -> Pattern:
    """The pattern of checked arguments: mask (n, n) and columns (n, Q) bool, on the CPU.

    Where more than a share ``whole`` of the pairs of a ``K_p`` are linked, all count as linked.
    """
    n = mask.shape[0]
    reach = reachable(mask, k)
    hears = mask | torch.eye(n, dtype=torch.bool)
    number = torch.zeros(n, n, dtype=torch.int32)  # of each connection
    number[hears] = torch.arange(int(hears.sum()), dtype=torch.int32)
    units, links, link_pairs, link_counts, sizes = [], [], [], [], []
    for p in range(n):
        others = reach[p].clone()
        others[p] = False
        near = torch.cat([torch.tensor([p]), others.nonzero()[:, 0]])
        units.append(near)
        pairs = hears[near][:, near]
        if int(pairs.sum()) > whole * pairs.numel():
            link_counts += [0] * len(near)
        else:
            link_counts += pairs.sum(1).tolist()
            links.append(pairs.nonzero()[:, 1])
            link_pairs.append(number[near][:, near][pairs])
        sizes.append(states * len(near) * gates * int(columns[p].sum()))
    at = _offsets(sizes)
    return Pattern(
        n, k, states, gates, columns.shape[1],
        units=torch.cat(units).int(),
        unit_at=_offsets([len(u) for u in units]),
        columns=columns.nonzero()[:, 1].int(),
        column_at=_offsets(columns.sum(1).tolist()),
        links=_joined(links),
        link_at=_offsets(link_counts),
        link_pairs=_joined(link_pairs),
        pairs=hears.nonzero().T.contiguous().int(),
        at=at,
        size=int(at[-1]),
        most_units=max(len(u) for u in units),
    )  # fmt: skip
