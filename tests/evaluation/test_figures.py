"""Styles of the curves of an evaluation."""

from lib.evaluation.figures import choose_styles


def test_a_method_keeps_its_style_between_pictures():
    usual = choose_styles(["slic", "composite", "base"])
    assert usual == {"base": 0, "composite": 1, "slic": 2}
    more = choose_styles(["mine", "base", "slic"])
    assert (more["base"], more["slic"]) == (0, 2)
    assert more["mine"] == choose_styles(["mine", "base"])["mine"] == choose_styles(["grid", "mine"])["mine"]


def test_styles_differ():
    eight = choose_styles([f"method {idx}" for idx in range(5)] + ["base", "slic", "grid"])
    assert len({idx % 8 for idx in eight.values()}) == 8  # colours
    many = choose_styles([f"method {idx}" for idx in range(56)])
    assert sorted(many.values()) == list(range(56))
    assert len(choose_styles(map(str, range(60)))) == 60
