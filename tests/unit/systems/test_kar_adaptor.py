"""The hybrid-expert adaptor: shapes, gates, who learns from what, and that it learns."""

import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")

from llmrec_plugin.systems.kar.adaptor import HybridExpertAdaptor  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_streams_come_out_side_by_side():
    adaptor = HybridExpertAdaptor(12, streams=3, out_dims=5)
    vectors = [torch.randn(4, 12) for _ in range(3)]
    out = adaptor(*vectors)
    assert (out.shape, adaptor.width) == ((4, 15), 15)
    changed = adaptor(vectors[0], torch.randn(4, 12), vectors[2])
    torch.testing.assert_close(changed[:, :5], out[:, :5])
    torch.testing.assert_close(changed[:, 10:], out[:, 10:])
    assert not torch.allclose(changed[:, 5:10], out[:, 5:10])


def test_the_paper_s_shape_gives_64_inputs():
    assert HybridExpertAdaptor(768)(torch.randn(2, 768), torch.randn(2, 768)).shape == (2, 64)


def test_gates_are_weights_of_all_experts_of_a_stream():
    adaptor = HybridExpertAdaptor(6, shared=2, dedicated=3)
    for weights in adaptor.weights(torch.randn(7, 6), torch.randn(7, 6)):
        assert weights.shape == (7, 5)
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(7))


def test_what_comes_out_is_the_weighted_sum_of_the_experts():
    adaptor = HybridExpertAdaptor(6, shared=1, dedicated=2, out_dims=3)
    user, item = torch.randn(4, 6), torch.randn(4, 6)
    weights = adaptor.weights(user, item)[1]
    experts = [adaptor.shared[0], *adaptor.dedicated[1]]
    expected = sum(weights[:, [row]] * expert(item) for row, expert in enumerate(experts))
    torch.testing.assert_close(adaptor(user, item)[:, 3:], expected)


def test_shared_experts_learn_from_all_streams_and_dedicated_ones_from_their_own():
    adaptor = HybridExpertAdaptor(6, out_dims=3)
    adaptor(torch.randn(4, 6), torch.randn(4, 6))[:, :3].sum().backward()  # the first stream only

    def learns(module):
        return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())

    assert all(map(learns, adaptor.shared))
    assert all(map(learns, adaptor.dedicated[0]))
    assert learns(adaptor.gates[0])
    assert not any(map(learns, adaptor.dedicated[1]))
    assert not learns(adaptor.gates[1])


def test_it_learns_what_two_vectors_have_in_common():
    """A label that neither stream tells alone: whether the signs of two hidden directions agree."""
    direction = torch.randn(2, 16)
    user, item = torch.randn(2, 256, 16)
    label = ((user @ direction[0] > 0) == (item @ direction[1] > 0)).float()
    adaptor = HybridExpertAdaptor(16, hidden_dims=(32,), out_dims=8)
    ranker = torch.nn.Sequential(torch.nn.Linear(adaptor.width, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam([*adaptor.parameters(), *ranker.parameters()], lr=0.01)
    losses = []
    for _ in range(100):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(ranker(adaptor(user, item))[:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.6
    assert losses[-1] < 0.1


@pytest.mark.parametrize("shapes", [[(2, 6)], [(2, 6)] * 3, [(2, 6), (2, 5)], [(2, 6), (3, 6)], [(2, 6), (6,)]])
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"expected 2 tensors of one shape \(batch, 6\)"):
        HybridExpertAdaptor(6)(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    "sizes", [{"dims": 0}, {"streams": 0}, {"shared": 0, "dedicated": 0}, {"hidden_dims": (0,)}, {"dedicated": -1}]
)
def test_sizes_that_mean_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match="expected positive sizes"):
        HybridExpertAdaptor(**{"dims": 6, **sizes})
