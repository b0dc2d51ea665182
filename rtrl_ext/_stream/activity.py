"""The activity of one layer of a stream, and the steps that its rule has still to take up."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._autograd import below_autograd
from .capture import BROKEN_OFF, WAITING, Home, check_rule
from .cells import StepCell
from .learner import Learner
from .records import Gradients, Record

#: So many steps without a loss wait at most before one pass takes them up.
MOST_WAITING = 16


class Activity:
    """States, and where credit for the past ends.

    A graph repeats what was captured of a layer. So from the first captured step on there is a
    `Home`: whenever nothing waits the states are in it, and so are the rows that start anew.
    """

    def __init__(self, cell: StepCell, batch: int, n: int, like: Tensor) -> None:
        self.cell, self.batch, self.n, self.like = cell, batch, n, like
        self.states = cell.initial(batch, n, like)
        self.learner: Learner | None = None
        self.index = 0  # of the last step
        self.time = 0  # of the last step that the learner has taken up
        self.waiting: list[Record] = []
        self.last: Record | None = None  # that of `time`
        self.fresh: Tensor | None = None  # rows whose past is dropped before the next step
        self.cut = False  # all of them
        self.home: Home | None = None
        self.capturing = False
        # for a home's `fresh`, which a capture must not make: no rows, all rows
        self.none_or_all = [torch.full((batch,), v, device=like.device) for v in (False, True)]

    def admit(self, capturing: bool) -> None:
        """RuntimeError for what can't be captured, or can't follow what was."""
        if not capturing:
            if self.capturing and self.waiting:
                raise RuntimeError(BROKEN_OFF)
            return
        if self.waiting and not self.capturing:
            raise RuntimeError(WAITING)
        if torch.is_grad_enabled():
            check_rule(self.learner, self.time)

    def enter(self, capturing: bool) -> None:
        """Begin what `admit` let pass."""
        if capturing and self.home is None:
            fresh = self.fresh
            if fresh is None or self.cut:
                fresh = self.none_or_all[self.cut]
            self.home = Home(self.states, fresh)
            self.drop()
        self.capturing = capturing

    def reset(self, mask: Tensor) -> None:
        """The states start anew in the rows of ``mask``, and nothing from before counts there."""
        at_home = self._at_home()
        initial = self.cell.initial(self.batch, self.n, self.like)
        rows = mask.unsqueeze(1)
        states = tuple(
            torch.where(rows, new, old) if old.dim() > 1 else old
            for new, old in zip(initial, self.states, strict=True)
        )
        if at_home and self.home is not None:
            self.home.write(states)
            self.home.fresh.logical_or_(mask)
            return
        self.states = states
        self.fresh = mask.clone() if self.fresh is None else self.fresh | mask

    def detach(self) -> None:
        """Nothing from before counts in later steps."""
        self.cut = True
        self._at_home()

    def drop(self) -> None:
        """What waits, and what lies away from home, counts no more; no loss of it may come."""
        for record in [*self.waiting, *([] if self.last is None else [self.last])]:
            record.close()
        self.waiting.clear()
        self.last, self.fresh, self.cut, self.capturing = None, None, False, False
        if self.home is not None:
            self.states = self.home.states

    def starting(self) -> Tensor | None:
        """The rows whose past is dropped before the next step; not those of `cut`."""
        return self.fresh if self.home is None or self.waiting else self.home.fresh

    def _starting(self) -> Tensor | None:
        """The same, all of them, for a step that is now recorded."""
        if self.home is not None and not self.waiting:
            return self.home.fresh
        fresh = self.fresh
        if self.cut and self.index > 1:
            fresh = torch.ones(self.batch, dtype=torch.bool, device=self.like.device)
        self.fresh, self.cut = None, False
        return fresh

    def _make_room(self) -> None:
        """Take up steps whose losses can't come any more, many at once."""
        waiting = self.waiting
        if len(waiting) < MOST_WAITING or waiting[0].pending:
            return
        count = next((i for i, r in enumerate(waiting) if r.pending), len(waiting))
        if count >= MOST_WAITING // 2:
            self._take_up(count, [None] * count)

    def _take_up(self, count: int, signals: Sequence[Tensor | None]) -> Gradients:
        assert self.learner is not None
        taken = self.waiting[:count]
        with below_autograd():
            grads = self.learner.advance(taken, signals)
        over = taken[:-1] if self.last is None else [self.last, *taken[:-1]]
        self.time, self.last = taken[-1].index, taken[-1]
        del self.waiting[:count]
        for record in taken:
            record.signals.clear()
        for record in over:
            if record.weights.wanted:  # else there is the immediate path alone, which stays
                record.close()
        if self.home is not None and taken[0].fresh is self.home.fresh:
            if count == 1 and (self.learner.reads_before or not taken[0].weights.wanted):
                taken[0].before = tuple(s.clone() for s in taken[0].before)
                taken[0].fresh = self.home.fresh.clone()
            self.home.fresh.zero_()
        return grads

    def _at_home(self) -> bool:
        """Bring the activity home, if there is one and no loss may still come for a step."""
        home = self.home
        if home is None or any(r.pending for r in self.waiting):
            return False
        if self.waiting:
            self._take_up(len(self.waiting), [None] * len(self.waiting))
        home.write(self.states)
        self.states = home.states
        if self.cut:
            home.fresh.fill_(True)
        elif self.fresh is not None:
            home.fresh.logical_or_(self.fresh)
        self.fresh, self.cut = None, False
        return True
