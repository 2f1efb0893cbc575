"""Replay: preallocated tensors on the training device, one row per control step of each environment.

A *lane* is one environment; all lanes advance together, so a control step of the batch is one slab of rows. A row holds what the
decision of that step saw (``condition``), the action that was executed, the method's own fields, and the step's result. Returns
over several steps and action chunks are put together at sampling time from consecutive rows of a lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError

CONDITION, ACTION, REWARD, TERMINATED, ENDED = "condition", "action", "reward", "terminated", "ended"
OUTCOME, SETTLED = "outcome", "settled"
PLAN, LATENT, SINCE_DECISION = "plan", "latent_noise", "since_decision"

_TENSORS = ("actions", "returns", "bootstrap", "outcomes", "settled")


@dataclass(frozen=True)
class ReplayBatch:
    """Transitions of up to ``n`` control steps."""

    fields: Mapping[str, Tensor]
    """Field -> (b, d) at the first step, normalised units."""
    following: Mapping[str, Tensor]
    """Field -> (b, d) at the step that is bootstrapped from; meaningless where ``bootstrap`` is 0."""
    actions: Tensor
    """(b, n, a) executed actions; steps past the end of the episode hold what had been planned (see
    :meth:`ReplayBuffer.sample`)."""
    returns: Tensor
    """(b,) ``sum_j discount^j reward_j`` over the steps inside the episode."""
    bootstrap: Tensor
    """(b,) factor of the value at ``following``: ``discount^m`` after m steps, 0 where the episode terminated."""
    outcomes: Tensor
    """(b,) discounted return from the first step to the end of the episode, where that end is known and terminal; else 0."""
    settled: Tensor
    """(b,) bool: that return is known, and is one of the policy that is refined (a demonstration's is not)."""

    @property
    def condition(self) -> Tensor:
        """(b, c) what the decision saw."""
        return self.fields[CONDITION]

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name, fields under ``fields/`` and ``following/``."""
        parts = {"fields": self.fields, "following": self.following}
        named = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        return named | {name: getattr(self, name) for name in _TENSORS}


class ReplayBuffer:
    """Ring of ``capacity`` rows in ``lanes`` lanes.

    A truncated episode is bootstrapped through: a window that reaches its last row bootstraps from the state of that row (the
    latest at which a decision was recorded) and leaves the result of that step out. So only the last step of a truncated
    episode is unused.
    """

    def __init__(
        self, *, lanes: int, capacity: int, dims: Mapping[str, int], discount: float, device: torch.device | str = "cpu"
    ) -> None:
        """Allocate all memory.

        Args:
            lanes: environments.
            capacity: rows in all lanes together; rounded down to whole slabs.
            discount: per control step.
            dims: field -> elements; must name ``condition`` and ``action``. A field ``plan`` holds, flattened, the actions that
                were planned from this step on, itself included; a field ``since_decision`` (1) how many steps before this one
                the chunk was decided, and then windows begin at decisions.
            device: where everything lives.

        Raises:
            RefusedError: a field is missing, or the capacity is below two slabs.
        """
        if {CONDITION, ACTION} - set(dims):
            raise RefusedError(f"A replay buffer needs the fields {CONDITION!r} and {ACTION!r}, got {sorted(dims)}.")
        slabs = capacity // lanes
        if slabs < 2:
            raise RefusedError(f"A replay buffer of {capacity=} holds {slabs} steps of {lanes} lanes; at least 2 are needed.")
        self.lanes, self.slabs = lanes, slabs
        self._fields = {name: torch.zeros(slabs, lanes, d, device=device) for name, d in dims.items()}
        self._reward = torch.zeros(slabs, lanes, device=device)
        self._terminated = torch.zeros(slabs, lanes, dtype=torch.bool, device=device)
        self._ended = torch.zeros(slabs, lanes, dtype=torch.bool, device=device)
        self._outcome = torch.zeros(slabs, lanes, device=device)
        self._settled = torch.zeros(slabs, lanes, dtype=torch.bool, device=device)
        self._discount = discount
        self._age = [0] * lanes
        self._written = 0

    def __len__(self) -> int:
        """Return the number of rows held."""
        return min(self._written, self.slabs) * self.lanes

    def holds(self, steps: int) -> bool:
        """Return whether windows of ``steps`` control steps can be drawn."""
        return min(self._written, self.slabs) >= steps + 2

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self._reward.device

    def add(self, fields: Mapping[str, Tensor], *, reward: Tensor, terminated: Tensor, truncated: Tensor) -> None:
        """Append one control step of all lanes.

        Args:
            fields: field -> (lanes, d), all of the buffer's.
            reward: (lanes,).
            terminated: (lanes,) bool; the value after this step is 0.
            truncated: (lanes,) bool; the episode was cut, the value goes on.

        Raises:
            RefusedError: a field is missing, unknown or misshapen, or a reward or value is not finite.
        """
        if set(fields) != set(self._fields):
            raise RefusedError(f"The replay buffer's fields are {sorted(self._fields)}, got {sorted(fields)}.")
        at = self._written % self.slabs
        for name, value in {**fields, REWARD: reward}.items():
            wanted = (self.lanes,) if name == REWARD else tuple(self._fields[name].shape[1:])
            if tuple(value.shape) != wanted:
                raise RefusedError(f"Replay field {name!r} must have shape {wanted}, got {tuple(value.shape)}.")
            if not value.isfinite().all():
                raise RefusedError(f"Replay field {name!r} holds a value that is not finite.")
        for name, value in fields.items():
            self._fields[name][at] = value
        self._reward[at], self._terminated[at], self._ended[at] = reward, terminated, terminated | truncated
        self._outcome[at], self._settled[at] = 0.0, False
        self._written += 1
        self._close_episodes(terminated, terminated | truncated)

    def _close_episodes(self, terminated: Tensor, ended: Tensor) -> None:
        """Write the returns to go of the episodes that terminated with the newest step into all their rows."""
        self._age = [age + 1 for age in self._age]
        if not bool(ended.any()):
            return
        for lane, (over, terminal) in enumerate(zip(ended.tolist(), terminated.tolist(), strict=True)):
            if over and terminal:
                length = min(self._age[lane], self.slabs)
                rows = torch.arange(self._written - length, self._written, device=self.device) % self.slabs
                self._outcome[rows, lane] = returns_to_go(self._reward[rows, lane], self._discount)
                self._settled[rows, lane] = True
            if over:
                self._age[lane] = 0

    def forget_outcomes(self) -> None:
        """Take the returns of all episodes so far for those of another policy: the one that acts from now on is a new one."""
        self._settled.zero_()

    def fill(self, fields: Mapping[str, Tensor], *, reward: Tensor, terminated: Tensor, ended: Tensor) -> None:
        """Hold exactly these steps, (steps, lanes, d) each and (steps, lanes): a whole data set of another policy at once.

        Raises:
            RefusedError: there are more steps than the buffer holds, or a value is not finite.
        """
        if len(reward) > self.slabs:
            raise RefusedError(f"{len(reward)} steps do not fit a replay buffer of {self.slabs}.")
        for name, value in {**fields, REWARD: reward}.items():
            if not value.isfinite().all():
                raise RefusedError(f"Replay field {name!r} holds a value that is not finite.")
        outcome = torch.zeros_like(reward)
        for lane in range(self.lanes):
            last = torch.nonzero(ended[:, lane])[:, 0].tolist()
            for first, end in zip([0, *(i + 1 for i in last)], [i + 1 for i in last], strict=False):
                if terminated[end - 1, lane]:
                    outcome[first:end, lane] = returns_to_go(reward[first:end, lane], self._discount)
        settled = torch.zeros_like(ended)
        rows = {**fields, REWARD: reward, TERMINATED: terminated, ENDED: ended, OUTCOME: outcome, SETTLED: settled}
        age = torch.zeros(self.lanes, dtype=torch.int64)
        self.restore({**rows, "written": torch.tensor(len(reward)), "age": age})

    def sample(self, rows: int, *, steps: int, rng: torch.Generator) -> ReplayBatch:
        """Draw ``rows`` windows of up to ``steps`` control steps, uniformly over the rows that have a usable successor.

        A window ends early where its episode ends. Actions after a terminated step are taken from the ``plan`` field of that step
        where the buffer has one, else its last action is repeated: a critic over whole chunks needs all entries, whatever they
        are.

        Args:
            rows: b.
            steps: n, control steps.
            rng: on the buffer's device.

        Raises:
            RefusedError: the buffer holds fewer than ``steps`` + 2 steps.
        """
        filled = min(self._written, self.slabs)
        if not self.holds(steps):
            raise RefusedError(f"The replay buffer holds {filled} steps; windows of {steps} need {steps + 2}.")
        oldest = self._written - filled
        # The newest slab has no successor yet, so starts stop before it; the window below may still end on it.
        draw = torch.randint((filled - 1) * self.lanes, (rows,), generator=rng, device=self.device)
        start, lane = oldest + draw // self.lanes, draw % self.lanes
        at = start % self.slabs
        unused = self._ended[at, lane] & ~self._terminated[at, lane]
        start = start + torch.where(start > oldest, -1, 1) * unused
        if SINCE_DECISION in self._fields:
            since = self._fields[SINCE_DECISION][start % self.slabs, lane, 0].long()
            start = (start - since).clamp(min=oldest)
        return self._windows(start, lane, steps=steps)

    def _windows(self, start: Tensor, lane: Tensor, *, steps: int) -> ReplayBatch:
        discount = self._discount
        offsets = torch.arange(steps, device=self.device)
        # Steps beyond the newest row do not exist yet: such a window is short, and bootstraps from the newest row.
        available = (self._written - 1 - start).clamp(max=steps)
        index = (start[:, None] + offsets.minimum(available[:, None])) % self.slabs
        lanes = lane[:, None]
        terminated, ended = self._terminated[index, lanes], self._ended[index, lanes]
        exists = offsets < available[:, None]
        open_before = (ended & exists).cumsum(dim=1) - (ended & exists).int() == 0
        cut = ended & ~terminated  # truncated: the state of this row is the last one known
        counts = exists & open_before & ~cut
        taken = counts.sum(dim=1)
        reached_end = (terminated & counts).any(dim=1)
        powers = discount ** offsets.to(self._reward.dtype)
        returns = (self._reward[index, lanes] * counts * powers).sum(dim=1)
        bootstrap = torch.where(reached_end, 0.0, discount ** taken.to(self._reward.dtype))
        after = (start + torch.where(reached_end, 0, taken)) % self.slabs
        return ReplayBatch(
            fields={name: values[start % self.slabs, lane] for name, values in self._fields.items()},
            following={name: values[after, lane] for name, values in self._fields.items()},
            actions=self._chunk(index, lanes, taken, counts),
            returns=returns,
            bootstrap=bootstrap,
            outcomes=self._outcome[start % self.slabs, lane],
            settled=self._settled[start % self.slabs, lane],
        )

    def _chunk(self, index: Tensor, lanes: Tensor, taken: Tensor, counts: Tensor) -> Tensor:
        """Return executed actions (b, n, a), and planned ones behind the last executed one."""
        actions = self._fields[ACTION][index, lanes]
        rows, steps, dim = actions.shape
        if steps == 1:
            return actions
        last = (taken - 1).clamp(min=0)
        last_index, lane = index.gather(1, last[:, None])[:, 0], lanes[:, 0]
        if PLAN in self._fields:
            plan = self._fields[PLAN][last_index, lane].view(rows, -1, dim)
        else:
            plan = self._fields[ACTION][last_index, lane][:, None]
        beyond = (torch.arange(steps, device=self.device) - last[:, None]).clamp(0, plan.shape[1] - 1)
        planned = plan.gather(1, beyond[..., None].expand(-1, -1, dim))
        return torch.where(counts[..., None], actions, planned)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that :meth:`restore` reads; only the rows in use."""
        used = min(self._written, self.slabs)
        rows = {name: value[:used] for name, value in self._rows().items()}
        return rows | {"written": torch.tensor(self._written), "age": torch.tensor(self._age)}

    def _rows(self) -> dict[str, Tensor]:
        results = {REWARD: self._reward, TERMINATED: self._terminated, ENDED: self._ended}
        return {**self._fields, **results, OUTCOME: self._outcome, SETTLED: self._settled}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the rows of :meth:`state`.

        Raises:
            RefusedError: the rows have other fields, sizes or lanes than this buffer.
        """
        rows = self._rows()
        wanted = {name: tuple(value.shape[1:]) for name, value in rows.items()}
        came = {name: tuple(value.shape[1:]) for name, value in state.items() if name not in ("written", "age")}
        if wanted != came or not {"written", "age"} <= set(state):
            raise RefusedError(f"The saved replay has the fields {came}, this run's buffer {wanted}.")
        self._written, self._age = int(state["written"]), state["age"].tolist()
        used = min(self._written, self.slabs)
        for name, value in rows.items():
            if len(state[name]) != used:
                raise RefusedError(f"The saved replay holds {len(state[name])} steps, the buffer of this run {used}.")
            value[:used] = state[name]


def sample_mixed(
    online: ReplayBuffer, demos: ReplayBuffer | None, demo_rows: int, rows: int, *, steps: int, rng: torch.Generator
) -> ReplayBatch:
    """Draw ``rows`` windows, ``demo_rows`` of them from the demonstrations (Ball et al. 2023, RLPD's symmetric sampling)."""
    if demos is None or demo_rows == 0:
        return online.sample(rows, steps=steps, rng=rng)
    first = online.sample(rows - demo_rows, steps=steps, rng=rng)
    second = demos.sample(demo_rows, steps=steps, rng=rng)
    tensors = {name: torch.cat((getattr(first, name), getattr(second, name))) for name in _TENSORS}
    fields = {name: torch.cat((value, second.fields[name])) for name, value in first.fields.items()}
    following = {name: torch.cat((value, second.following[name])) for name, value in first.following.items()}
    return ReplayBatch(fields=fields, following=following, **tensors)


def returns_to_go(reward: Tensor, discount: float) -> Tensor:
    """Return (t,) ``G_i = sum_j discount^j reward_(i + j)`` of one episode's rewards (t,)."""
    powers = discount ** torch.arange(len(reward), device=reward.device, dtype=torch.float64)
    later = (reward * powers).flip(0).cumsum(0).flip(0)
    return (later / powers).to(reward.dtype)
