"""The training stream: what comes at a position is a function of seed and position, and of nothing else."""

from collections import Counter

import numpy as np
import pytest

from hfkit.evaluation.inference import EvaluationRows
from hfkit.training.stream import TrainingStream


class Rows:
    """Row i holds the tokens i, i, ..., as many as `lengths[i]`."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def __len__(self):
        return len(self.lengths)

    def example(self, index, random):
        return {"input_ids": np.full(self.lengths[index], index), "draw": random.integers(1 << 60)}


def varied(count):
    return Rows(1 + np.random.default_rng(0).integers(0, 40, count))


def packed(count):
    return Rows([32] * (count - 1) + [5])


def stream_of(rows, *, steps, global_batch_size, seed=1):
    return TrainingStream(rows, steps=steps, global_batch_size=global_batch_size, seed=seed)


def indices(stream, positions=None):
    return [stream.row(position) for position in (range(len(stream)) if positions is None else positions)]


@pytest.mark.parametrize("kind", [varied, packed])
@pytest.mark.parametrize(
    ("count", "global_batch_size", "epochs"), [(12, 4, 3), (13, 4, 3), (1000, 8, 2), (997, 8, 2), (3, 8, 5)]
)
def test_every_row_comes_once_per_epoch(kind, count, global_batch_size, epochs):
    steps = -(-count * epochs // global_batch_size)
    stream = stream_of(kind(count), steps=steps, global_batch_size=global_batch_size)
    assert len(stream) == steps * global_batch_size
    times = Counter(indices(stream))
    assert set(times) == set(range(count))
    whole, rest = divmod(len(stream), count)  # the last step may begin one epoch more
    assert Counter(times.values()) == Counter({whole: count - rest, whole + 1: rest}) + Counter()


@pytest.mark.parametrize("kind", [varied, packed])
def test_megabatches_hold_each_row_of_an_epoch_once(kind):
    stream = stream_of(kind(1000), steps=250, global_batch_size=8)  # two epochs; a megabatch is 50 steps, 400 rows
    assert sorted(indices(stream, range(400)) + indices(stream, range(400, 800))) == sorted(
        set(indices(stream, range(800)))
    )


@pytest.mark.parametrize("kind", [varied, packed])
def test_order_does_not_depend_on_how_a_position_is_reached(kind):
    positions = np.random.default_rng(7).permutation(123 * 6)
    forward = indices(stream_of(kind(97), steps=123, global_batch_size=6))
    jumping = stream_of(kind(97), steps=123, global_batch_size=6)
    assert [jumping.row(int(position)) for position in positions] == [forward[position] for position in positions]
    late = stream_of(kind(97), steps=123, global_batch_size=6)
    assert indices(late, range(500, 738)) == forward[500:]


def test_seed_decides_the_order_and_epochs_differ():
    first, again = (indices(stream_of(packed(40), steps=20, global_batch_size=4)) for _ in range(2))
    assert first == again
    assert first != indices(stream_of(packed(40), steps=20, global_batch_size=4, seed=2))
    assert first[:40] != first[40:]
    assert first[:40] != sorted(first[:40])


def test_rows_of_a_step_have_like_lengths():
    rows = varied(2000)
    stream = stream_of(rows, steps=250, global_batch_size=8)
    steps = rows.lengths[indices(stream)].reshape(-1, 8)
    useful = steps.sum() / (steps.max(1) * 8).sum()
    shuffled = np.random.default_rng(0).permutation(rows.lengths).reshape(-1, 8)
    assert shuffled.sum() / (shuffled.max(1) * 8).sum() < 0.65
    assert useful > 0.95
    assert len(np.unique(np.diff(steps.mean(1)) > 0)) == 2  # steps themselves are not ordered by length


def test_packed_blocks_are_shuffled_freely():
    stream = stream_of(packed(400), steps=50, global_batch_size=8)
    assert not stream.by_length
    assert stream_of(varied(400), steps=50, global_batch_size=8).by_length


def test_tokens_are_those_of_the_rows():
    rows = varied(97)
    stream = stream_of(rows, steps=60, global_batch_size=6)
    lengths = [len(stream[position]["input_ids"]) for position in range(len(stream))]
    for start, stop in [(0, 360), (0, 1), (17, 18), (90, 97), (95, 301), (300, 360), (8, 8)]:
        assert stream.tokens(start, stop) == sum(lengths[start:stop])


def test_random_choices_depend_on_seed_and_position_alone():
    def draws(seed, positions):
        stream = TrainingStream(varied(10), steps=10, global_batch_size=4, seed=seed)
        return {position: stream[position]["draw"] for position in positions}

    forward, backward = draws(3, range(40)), draws(3, reversed(range(40)))
    assert forward == backward
    assert len(set(forward.values())) == 40  # a row gets new masks whenever it comes again
    assert not set(forward.values()) & set(draws(4, range(40)).values())


def test_evaluation_has_every_row_once_longest_first():
    rows = varied(57)
    evaluation = EvaluationRows(rows, seed=0)
    given = [evaluation[place]["input_ids"] for place in range(len(evaluation))]
    assert sorted(int(ids[0]) for ids in given) == list(range(57))
    assert [len(ids) for ids in given] == sorted(rows.lengths, reverse=True)
    assert evaluation.order.tolist() == [int(ids[0]) for ids in given]


def test_padding_is_what_rows_as_long_as_the_longest_of_their_step_would_take():
    uneven = stream_of(Rows([4, 4, 4, 2]), steps=2, global_batch_size=2)  # [4, 4], [4, 2]
    assert uneven.padding() == pytest.approx(2 / 16)
    assert stream_of(packed(9), steps=3, global_batch_size=3).padding() < 0.11
    assert stream_of(varied(400), steps=100, global_batch_size=4).padding() < 0.03
