"""What the gallery tells depth and canny, beside the captions of their scenes."""

import pytest

from recipes.gallery import told_otherwise


@pytest.mark.parametrize(
    ("caption", "otherwise"),
    [
        ("an orange cone and a gray sphere on grass in fog", "a green cone and a yellow sphere on grass at sunset"),
        ("a small orange box on sand at sunset", "a small green box on sand in daylight"),
        ("a wooden box on a carpet in front of a green wall", "a wooden box on a carpet in front of a green wall"),
    ],
)
def test_things_get_other_colours_and_walls_stay(caption: str, otherwise: str) -> None:
    assert told_otherwise(caption) == otherwise
