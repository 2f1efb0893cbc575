import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.core.types import STATE, ActionChunk, FeatureSpec, Spaces
from robolearn.deploy.executor import ChunkExecutor, ExecutorConfig


class Counter:
    """Returns chunks that name their row's observation and query: actions are 100 x + 10 * query number of that x + step."""

    def __init__(self, obs_horizon=3, pred_horizon=4, chunks=None):
        self.obs_horizon, self.pred_horizon = obs_horizon, pred_horizon
        self.spaces = Spaces("r", {STATE: FeatureSpec((1,))}, FeatureSpec((1,)), (-1e9,), (1e9,), 10.0)
        self.seen, self.rngs, self.chunks = [], [], chunks

    def predict(self, observation, rng):
        self.seen.append(observation[STATE].copy())
        self.rngs.append(list(rng))
        if self.chunks is not None:
            return ActionChunk(np.float32(self.chunks[len(self.seen) - 1])[None, :, None])
        newest = observation[STATE][:, -1]
        return ActionChunk((100 * newest + np.arange(self.pred_horizon))[:, :, None].astype(np.float32))


def observe(*values):
    return {STATE: np.float32(values)[:, None], "observation.unused": np.zeros(len(values))}


def rngs(n):
    return [np.random.default_rng(i) for i in range(n)]


def test_history_repeats_the_first_observation_then_slides():
    policy = Counter(obs_horizon=3)
    executor = ChunkExecutor(policy, ExecutorConfig(exec_horizon=1), num_rows=1)
    for x in (1, 2, 3, 4):
        executor.act(observe(x), rngs(1))
    assert [s[0, :, 0].tolist() for s in policy.seen] == [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4]]


def test_a_chunk_is_used_for_exec_horizon_steps_from_its_first_row():
    # Chunk made at x: 100 x + (0, 1, 2, 3); with exec_horizon 2 rows 0 and 1 are used, then the policy is asked again.
    executor = ChunkExecutor(Counter(), ExecutorConfig(exec_horizon=2), num_rows=1)
    assert [float(executor.act(observe(x), rngs(1))[0, 0]) for x in range(5)] == [0, 1, 200, 201, 400]


def test_skipped_steps_slide_the_history_and_the_queue():
    # Decided at x = 0: rows 0, 1, 2, 3. Steps 1 and 2 go by without an action; step 3 is row 3; step 4 is a new chunk.
    policy = Counter()
    executor = ChunkExecutor(policy, ExecutorConfig(exec_horizon=4), num_rows=1)
    actions = []
    for x in range(5):
        if x in (1, 2):
            executor.skip(observe(x))
        else:
            actions.append(float(executor.act(observe(x), rngs(1))[0, 0]))
    assert actions == [0, 3, 400]
    assert policy.seen[-1][0, :, 0].tolist() == [2, 3, 4]


def test_a_plan_whose_time_is_over_is_made_again():
    executor = ChunkExecutor(Counter(), ExecutorConfig(exec_horizon=2), num_rows=1)
    executor.act(observe(1), rngs(1))
    for x in range(2, 9):
        executor.skip(observe(x))
    assert executor.act(observe(9), rngs(1))[0, 0] == 900


def test_replanning_forgets_the_queue_and_keeps_the_history():
    policy = Counter()
    executor = ChunkExecutor(policy, ExecutorConfig(4, temporal_overlap=True), num_rows=1)
    executor.act(observe(1), rngs(1))
    executor.replan()
    assert executor.act(observe(2), rngs(1))[0, 0] == 200
    assert policy.seen[-1][0, :, 0].tolist() == [1, 1, 2]


def test_rows_out_of_phase_are_asked_only_when_due():
    policy = Counter()
    executor = ChunkExecutor(policy, ExecutorConfig(exec_horizon=3), num_rows=2)
    executor.act(observe(1, 2), rngs(2))
    executor.reset(np.array([False, True]))
    action = executor.act(observe(1, 5), rngs(2))
    assert action[:, 0].tolist() == [101, 500]  # row 0: second action of its chunk; row 1: first of a new chunk
    executor.act(observe(1, 5), rngs(2))
    executor.act(observe(7, 5), rngs(2))
    assert [s[:, -1, 0].tolist() for s in policy.seen] == [[1, 2], [5], [7]]
    assert policy.seen[1][0, :, 0].tolist() == [5, 5, 5]  # the old episode is forgotten


def test_generators_follow_their_rows():
    policy = Counter()
    executor = ChunkExecutor(policy, ExecutorConfig(exec_horizon=2), num_rows=3)
    mine = rngs(3)
    executor.act(observe(1, 2, 3), mine)
    executor.reset(np.array([True, False, True]))
    executor.act(observe(1, 2, 3), mine)
    assert policy.rngs == [mine, [mine[0], mine[2]]]


def test_inactive_rows_cost_nothing_and_get_zeros():
    policy = Counter()
    executor = ChunkExecutor(policy, ExecutorConfig(exec_horizon=1), num_rows=2)
    action = executor.act(observe(4, np.nan), rngs(2), active=np.array([True, False]))
    assert action[:, 0].tolist() == [400, 0]
    assert len(policy.seen[0]) == 1
    executor.act(observe(4, 6), rngs(2))
    assert policy.seen[1][1, :, 0].tolist() == [6, 6, 6]  # a row's episode begins with its first active step


def test_temporal_overlap_weighs_chunks_from_oldest_to_newest():
    # Queries at steps 0, 1, 2 return (0,10,20), (11,21,31), (22,32,42). With m = ln 2 weights are 1, 1/2, 1/4 from the oldest:
    # step 0: 0;  step 1: (10 + 11/2) / (3/2) = 10.3333;  step 2: (20 + 21/2 + 22/4) / (7/4) = 20.5714
    policy = Counter(pred_horizon=3, chunks=[(0, 10, 20), (11, 21, 31), (22, 32, 42), (33, 43, 53)])
    config = ExecutorConfig(exec_horizon=1, temporal_overlap=True, overlap_decay=np.log(2))
    executor = ChunkExecutor(policy, config, num_rows=1)
    actions = [float(executor.act(observe(0), rngs(1))[0, 0]) for _ in range(4)]
    # step 3: the first chunk is used up: (31 + 32/2 + 33/4) / (7/4) = 31.5714
    np.testing.assert_allclose(actions, [0, 15.5 / 1.5, 36 / 1.75, 55.25 / 1.75], rtol=1e-6)


def test_temporal_overlap_with_longer_execution():
    # exec 2 of 3: step 2 is covered by chunk 0 (last row) and chunk 1 (first): (20 + 100/2) / 1.5; step 3 by chunk 1 alone.
    policy = Counter(pred_horizon=3, chunks=[(0, 10, 20), (100, 110, 120), (0, 0, 0)])
    executor = ChunkExecutor(policy, ExecutorConfig(2, temporal_overlap=True, overlap_decay=np.log(2)), num_rows=1)
    actions = [float(executor.act(observe(0), rngs(1))[0, 0]) for _ in range(4)]
    np.testing.assert_allclose(actions, [0, 10, 70 / 1.5, 110], rtol=1e-6)


def test_temporal_overlap_after_skipped_steps():
    # exec 1 of 4, equal weights. Step 0: (0, 1, 2, 3). Step 1 goes by. Step 2: the first chunk's row 2 and (10, 11, 12, 13):
    # (2 + 10) / 2 = 6. Step 3: row 3, row 1 and (20, ...): (3 + 11 + 20) / 3 = 34/3.
    policy = Counter(chunks=[(0, 1, 2, 3), (10, 11, 12, 13), (20, 21, 22, 23)])
    executor = ChunkExecutor(policy, ExecutorConfig(1, temporal_overlap=True, overlap_decay=0.0), num_rows=1)
    assert executor.act(observe(0), rngs(1))[0, 0] == 0
    executor.skip(observe(1))
    actions = [float(executor.act(observe(x), rngs(1))[0, 0]) for x in (2, 3)]
    np.testing.assert_allclose(actions, [6, 34 / 3], rtol=1e-6)


def test_overlap_does_not_reach_into_the_next_episode():
    executor = ChunkExecutor(Counter(), ExecutorConfig(1, temporal_overlap=True), num_rows=1)
    executor.act(observe(1), rngs(1))
    executor.reset()
    assert executor.act(observe(9), rngs(1))[0, 0] == 900


def test_non_finite_actions_reach_the_safety_filter():
    policy = Counter(chunks=[(np.nan, 1, 2, 3)])
    assert np.isnan(ChunkExecutor(policy, ExecutorConfig(1), num_rows=1).act(observe(0), rngs(1))[0, 0])


@pytest.mark.parametrize("exec_horizon", [0, -1, 5])
def test_exec_horizon_outside_the_chunk_is_refused(exec_horizon):
    with pytest.raises(RefusedError, match=f"exec_horizon={exec_horizon}"):
        ChunkExecutor(Counter(pred_horizon=4), ExecutorConfig(exec_horizon), num_rows=1)


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ({}, "'observation.state' is missing"),
        ({STATE: np.zeros((2, 2), np.float32)}, r"must have shape \(2, 1\), got \(2, 2\)"),
        ({STATE: np.float32([[0], [np.inf]])}, r"not finite in rows \[1\]"),
    ],
)
def test_bad_observations_are_named(observation, words):
    with pytest.raises(RefusedError, match=words):
        ChunkExecutor(Counter(), ExecutorConfig(1), num_rows=2).act(observation, rngs(2))


def test_wrong_chunks_and_masks_are_named():
    executor = ChunkExecutor(Counter(chunks=[(1, 2)]), ExecutorConfig(1), num_rows=1)
    with pytest.raises(RefusedError, match=r"must have shape \(1, 4, 1\), got \(1, 2, 1\)"):
        executor.act(observe(0), rngs(1))
    with pytest.raises(RefusedError, match=r"reset mask must have shape \(1,\)"):
        executor.reset(np.ones(2, bool))
    with pytest.raises(RefusedError, match="1 rows need as many generators"):
        executor.act(observe(0), rngs(2))


class Continuing(Counter):
    """The same, but that a continued chunk keeps what is committed and remembers how much it was given."""

    def continue_chunk(self, observation, rng, committed, *, delay, method):
        chunk = self.predict(observation, rng).actions
        chunk[:, :delay] = committed[:, :delay]
        chunk[:, -1] += committed.shape[1]
        return ActionChunk(chunk)


@pytest.mark.parametrize("late", [1, 2, 3, 4])  # more than 8 rows less 3 cannot be played meanwhile
@pytest.mark.parametrize(
    "more",
    [{}, {"temporal_overlap": True}, {"continuation": "blend", "delay_steps": 2}, {"continuation": "guided", "delay_steps": 2}],
    ids=lambda more: str(more.get("continuation", "temporal_overlap" if more else "switch")),
)
def test_a_decision_made_meanwhile_is_what_simulated_lateness_says(late, more):
    config = ExecutorConfig(exec_horizon=3, **more)
    simulated = ChunkExecutor(
        Continuing(pred_horizon=8), config, num_rows=1, lateness=lambda rngs: np.full(len(rngs), late, np.int64)
    )
    beside = ChunkExecutor(Continuing(pred_horizon=8), config, num_rows=1)
    pending, skipped = [], {5, 6, 17}

    def elsewhere():
        if not pending:
            pending.append((x, beside.decision(rngs(1))))
        return True

    for x in range(40):
        if pending and x - pending[0][0] == late:
            _, decision = pending.pop()
            beside.arrive(decision, decision.ask())
        if x in skipped and late < 3:  # with more, the plan would end before the chunk arrives
            simulated.skip(observe(x))
            beside.skip(observe(x))
            continue
        expected = simulated.act(observe(x), rngs(1))
        found = beside.act(observe(x), rngs(1), elsewhere=elsewhere)
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(x))
    assert simulated.seam_counts[0] - beside.seam_counts[0] in (0, len(pending))


def test_only_a_single_row_is_decided_for_meanwhile():
    executor = ChunkExecutor(Counter(), ExecutorConfig(exec_horizon=1), num_rows=2)
    executor.act(observe(1, 2), rngs(2))
    with pytest.raises(RefusedError, match=r"Only a single row .* there are 2"):
        executor.decision(rngs(2))
