"""The second captions of depth and canny in the gallery."""

import pytest

from recipes.gallery import recoloured


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("an orange cone and a gray sphere on grass in fog", "a green cone and a yellow sphere on grass at sunset"),
        ("a small orange box on sand at sunset", "a small green box on sand in daylight"),
        ("a wooden box on a carpet in front of a green wall", "a wooden box on a carpet in front of a green wall"),
    ],
)
def test_objects_get_other_colours_and_walls_do_not(caption: str, expected: str) -> None:
    assert recoloured(caption) == expected
