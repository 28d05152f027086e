"""How large a stored picture is."""

from stages.images.stored import PixelRule


def test_sizes_are_never_enlarged_and_fit_a_jpeg() -> None:
    rule = PixelRule(256)
    assert [rule.stored_size(*size) for size in [(512, 1024), (300, 256), (100, 5000), (30, 131_000), (1, 10**6)]] == [
        (256, 512),
        (300, 256),
        (100, 5000),
        (15, 65_500),
        (1, 65_500),
    ]
    assert PixelRule.from_json(rule.to_json()) == rule
