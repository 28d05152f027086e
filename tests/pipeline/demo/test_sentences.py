"""The demo's sentences."""

from pipeline.demo.sentences import choose_sentences


def test_the_demo_has_twenty_thousand_different_sentences_of_one_line_each() -> None:
    sentences = choose_sentences(20_000, seed=0)

    assert len(set(sentences)) == len(sentences) == 20_000
    assert all(sentence.strip() and "\n" not in sentence for sentence in sentences)


def test_the_seed_alone_decides_which_sentences_are_chosen() -> None:
    chosen = choose_sentences(500, seed=1)

    assert choose_sentences(500, seed=1) == chosen
    assert choose_sentences(500, seed=2) != chosen


def test_written_descriptions_and_prompts_are_mixed() -> None:
    sentences = choose_sentences(2_000, seed=0)

    # Descriptions were written as sentences; nearly all templates begin in lower case.
    described = [sentence for sentence in sentences[:400] if sentence[0].isupper()]
    assert 200 < len(described) < 290
