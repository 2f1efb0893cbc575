"""A refined policy whose refinement can be taken away while it acts."""

from __future__ import annotations

from robolearn.core.protocols import ContinuingPolicy, CorrectingPolicy, Policy, RandomSource
from robolearn.core.types import ActionChunk, Array, Observation


class FallbackPolicy:
    """Acts as ``refined`` until :attr:`fallen_back` is set, then as ``base``; both read the same and plan equally far."""

    def __init__(self, refined: Policy, base: Policy) -> None:
        self._refined, self._base = refined, base
        self.spaces, self.obs_horizon, self.pred_horizon = refined.spaces, refined.obs_horizon, refined.pred_horizon
        self.fallen_back = False
        if isinstance(refined, ContinuingPolicy) and isinstance(base, ContinuingPolicy):
            self.continue_chunk = self._continue_chunk

    @property
    def _active(self) -> Policy:
        return self._base if self.fallen_back else self._refined

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        return self._active.predict(observation, rng)

    def _continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        active = self._active
        assert isinstance(active, ContinuingPolicy)
        return active.continue_chunk(observation, rng, committed, delay=delay, method=method)

    def correct(self, observation: Observation, action: Array, rng: RandomSource) -> Array:
        """See :meth:`robolearn.core.protocols.CorrectingPolicy.correct`; the action itself where nothing corrects."""
        active = self._active
        return active.correct(observation, action, rng) if isinstance(active, CorrectingPolicy) else action
