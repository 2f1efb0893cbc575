"""What critics read of a condition: worked by hand."""

import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.core.types import FeatureSpec
from robolearn.nets.critics import CriticConfig, make_critics
from robolearn.nets.encoders import ObservationEncoder
from robolearn.nets.features import ConditionFeatures, chosen_elements
from robolearn.nets.images import ImageConfig

STATE, IMAGE = "observation.state", "observation.images.front"
ENCODER = ObservationEncoder(
    {STATE: FeatureSpec((3,), names=("eef_x", "cube_to_eef_x", "grip")), IMAGE: FeatureSpec((48, 48, 3), dtype="uint8")},
    2,
    image=ImageConfig(keypoints=2),
)


def test_octaves_of_chosen_elements_by_hand():
    # Element 1 is read. x = 0.25: sin(pi/4), sin(pi/2), cos(pi/4), cos(pi/2) = 0.7071, 1, 0.7071, 0.
    features = ConditionFeatures([1], octaves=2)
    got = features(torch.tensor([[9.0, 0.25], [9.0, -0.5]]))
    # x = -0.5: sin(-pi/2), sin(-pi), cos(-pi/2), cos(-pi) = -1, 0, 0, -1.
    wanted = torch.tensor([[0.25, 0.7071068, 1.0, 0.7071068, 0.0], [-0.5, -1.0, 0.0, 0.0, -1.0]])
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    assert features.dim == 5


def test_no_octave_and_no_pattern_is_the_condition_itself():
    condition = torch.randn(4, 3)
    assert torch.equal(ConditionFeatures(range(3), octaves=0)(condition), condition)


def test_a_condition_has_a_name_for_every_element():
    names = ENCODER.element_names()
    assert names[:6] == ["eef_x", "cube_to_eef_x", "grip"] * 2
    assert names[6:] == [f"{IMAGE}.{i}" for i in range(8)]  # 2 steps x 2 keypoints x (row, column)
    assert len(names) == ENCODER.condition_dim
    assert chosen_elements(names, ["*_to_eef_*", "grip"]) == [1, 2, 4, 5]


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(RefusedError, match=r"'gripp'.*grip"):
        make_critics(ENCODER, 4, CriticConfig(reads=("gripp",)))


def test_critics_do_not_see_what_they_do_not_read():
    critics = make_critics(ENCODER, 1, CriticConfig(width=8, layers=1, reads=("grip",)))
    condition, action = torch.randn(5, ENCODER.condition_dim), torch.randn(5, 1)
    other = condition.clone()
    other[:, [0, 1, 3, 4, 6, 13]] += 1.0
    assert torch.equal(critics(condition, action), critics(other, action))
    other[:, 2] += 1.0
    assert not torch.equal(critics(condition, action), critics(other, action))
