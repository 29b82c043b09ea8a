"""What is written is what PyTorch writes, row by row, whatever is written beside it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from generating import TAGS, request

from llmrec_plugin.errors import ArtifactCorruptError, InputError, ParityError
from llmrec_plugin.generation import Request, Segment
from llmrec_plugin.runtime.generation import session as module
from llmrec_plugin.runtime.generation import slots
from llmrec_plugin.runtime.generation.prompts import EncodedPrompt
from llmrec_plugin.runtime.generation.session import FusedEngine, open_generator
from llmrec_plugin.specs import Choice, Decoding, ShortText, Tags

MODELS = ("llama", "llama-plain", "t5")
FUSED = "llama"
WORDS = ("web", "server", "database", "a fast parser", "red and blue", "images, sounds", "Übung 4", "graph", "x" * 30)


def requests(count, seed=0):
    """Ragged prompts with common instructions."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(count)]
    return [request(text, "write tags of the item: ", seed=i) for i, text in enumerate(texts)]


def tokens(completions):
    return [completion.tokens for completion in completions]


@pytest.fixture(autouse=True)
def small_slots(monkeypatch):
    """Fewer slots than rows, so that rows take over slots of others."""
    monkeypatch.setattr(module, "SLOTS", 5)


@pytest.mark.parametrize("name", MODELS)
def test_the_most_probable_tokens_are_those_of_transformers(generators, encode, name):
    asked = requests(12)
    found = generators.open(name).generate(asked, Decoding(max_new_tokens=10))
    expected = [generators.reference(name, encode(name, one, 10), max_new_tokens=10) for one in asked]
    assert [list(one) for one in tokens(found)] == expected
    assert len({len(one) for one in expected} | {one[0] for one in expected if one}) > 1


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("name", MODELS)
def test_beam_search_is_that_of_transformers(generators, encode, name, penalty):
    asked = requests(5, seed=3)
    decoding = Decoding(method="beam", beams=3, length_penalty=penalty, max_new_tokens=12)
    found = generators.open(name).generate(asked, decoding)
    config = {"max_new_tokens": 12, "num_beams": 3, "length_penalty": penalty, "early_stopping": False}
    expected = [generators.reference(name, encode(name, one, 12), **config) for one in asked]
    assert [list(one) for one in tokens(found)] == expected


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=9),
        Decoding(max_new_tokens=9, repetition_ngram=2),
        Decoding(method="sample", max_new_tokens=9, temperature=1.3, top_p=0.9, seed=4),
        Decoding(method="beam", beams=2, max_new_tokens=9),
    ],
    ids=["greedy", "ngram", "sample", "beam"],
)
def test_a_row_does_not_depend_on_its_neighbors_or_its_place(generators, name, decoding):
    session, asked = generators.open(name), requests(13)
    together = session.generate(asked, decoding)
    order = np.random.default_rng(1).permutation(len(asked))
    shuffled = session.generate([asked[i] for i in order], decoding)
    alone = [session.generate([one], decoding)[0] for one in asked]
    assert tokens(together) == tokens(alone)
    assert tokens(shuffled) == [together[i].tokens for i in order]
    np.testing.assert_allclose([one.logprob for one in together], [one.logprob for one in alone], atol=1e-3, rtol=1e-4)


def test_draws_differ_by_row_and_by_seed_and_repeat(generators):
    session = generators.open(FUSED)
    same = [request("web", seed=seed) for seed in range(8)]
    draw = Decoding(method="sample", max_new_tokens=8, seed=1)
    found = tokens(session.generate(same, draw))
    assert len(set(found)) > 4
    assert found == tokens(session.generate(same, draw))
    assert found != tokens(session.generate(same, Decoding(method="sample", max_new_tokens=8, seed=2)))


def test_a_logprob_is_that_of_the_tokens_written(generators, encode):
    torch = pytest.importorskip("torch")
    (found,) = generators.open(FUSED).generate([request("web server")], Decoding(max_new_tokens=6))
    ids = encode(FUSED, request("web server"), 6)
    with torch.inference_mode():
        logits = generators.network(FUSED)(torch.tensor([[*ids, *found.tokens]])).logits[0]
    chances = torch.log_softmax(logits, -1)
    expected = sum(float(chances[len(ids) + i - 1, token]) for i, token in enumerate(found.tokens))
    assert found.finish == "length"
    assert found.logprob == pytest.approx(expected, abs=1e-3)


def test_no_ngram_is_written_twice(generators):
    for one in generators.open(FUSED).generate(requests(8), Decoding(max_new_tokens=30, repetition_ngram=2)):
        pairs = list(zip(one.tokens, one.tokens[1:], strict=False))
        assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=24),
        Decoding(method="sample", temperature=3.0, max_new_tokens=24),
        Decoding(method="beam", beams=3, max_new_tokens=24),
        Decoding(max_new_tokens=14, repetition_ngram=2),
    ],
    ids=["greedy", "sample", "beam", "ngram"],
)
def test_a_model_that_knows_nothing_writes_valid_values_all_the_same(generators, name, decoding):
    session, asked = generators.open(name), requests(20)
    for one in session.generate(asked, decoding, Tags(vocabulary=TAGS, max_items=3)):
        tags = one.text.strip().split(", ")
        assert set(tags) <= set(TAGS)
        assert 1 <= len(tags) == len(set(tags)) <= 3
        assert one.finish == "stop"
    for one in session.generate(asked, decoding, Choice(options=TAGS)):
        assert one.text.strip() in TAGS
        assert one.finish == "stop"


def test_tokens_without_a_choice_cost_no_logits(generators):
    """Of two options that differ in their last letter the model decides one token."""
    session = generators.open(FUSED)
    asked_for = []

    def count(rows, logits):
        asked_for.append(len(rows))
        return original(rows, logits)

    output = Choice(options=("database", "databasf"))
    writing = session._writing(Decoding(max_new_tokens=20), output)
    original = writing.choose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Writing, "choose", lambda self, rows, logits: count(rows, logits))
        session.generate(requests(1), Decoding(max_new_tokens=20), output)
    assert sum(asked_for) <= 3  # one for the space before, one where the options part


def test_a_text_ends_before_a_stop_string_and_begins_with_its_prefix(generators):
    session = generators.open(FUSED)
    free = session.generate(requests(10), Decoding(max_new_tokens=30))
    mark = next(one.text[3] for one in free if len(one.text) > 4 and one.text[3].isascii())
    output = ShortText(stop=(mark,), prefix="")
    for whole, cut in zip(free, session.generate(requests(10), Decoding(max_new_tokens=30), output), strict=True):
        assert cut.text == whole.text.partition(mark)[0]
        assert cut.finish == ("stop" if mark in whole.text else whole.finish)
    for one in session.generate(requests(4), Decoding(max_new_tokens=12), ShortText(prefix="[new]")):
        assert one.text.startswith("[new]")


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_end_early_make_room_for_others(generators, name):
    """The end is a token that the model does write, so that rows have unequal lengths."""
    session = generators.open(name)
    free = session.generate(requests(16), Decoding(max_new_tokens=20))
    written = [token for one in free for token in one.tokens]
    end = max(set(written), key=written.count)
    with pytest.MonkeyPatch.context() as patch:
        original = module.Writing.__init__

        def init(self, *arguments, **options):
            original(self, *arguments, **options)
            self._ends |= {end}

        patch.setattr(module.Writing, "__init__", init)
        ended = session.generate(requests(16), Decoding(max_new_tokens=20))
    for whole, one in zip(free, ended, strict=True):
        at = whole.tokens.index(end) if end in whole.tokens else None
        assert one.tokens == whole.tokens[:at]
        assert one.finish == ("length" if at is None else "stop")
    assert len({len(one.tokens) for one in ended}) > 2


def test_what_all_prompts_begin_with_is_read_once(generators):
    engine = FusedEngine(generators.artifact(FUSED), "cpu", 1)
    session = generators.open(FUSED)
    instructions = "write tags for the item that is described here, in a few words: "
    asked = [request(text, instructions) for text in ("web", "database", "sound", "a game engine", "java")]
    prompts = module.encode_requests(asked, session.artifact.manifest, session._tokenizer, 2)
    decoding = Decoding(max_new_tokens=2)
    engine.write(prompts, [0] * 5, session._writing(decoding, None), decoding, lambda row: None)
    head = prompts[0].head
    rest = sum(len(prompt.ids) - head for prompt in prompts)
    assert engine.tokens == head + rest + 5  # the last token of a row is never read
    before = engine.tokens
    engine.write(prompts, [0] * 5, session._writing(decoding, None), decoding, lambda row: None)
    assert engine.tokens - before == rest + 5


def unlike(*lengths):
    """Prompts of these lengths that have no beginning in common."""
    rng = np.random.default_rng(len(lengths))
    return [EncodedPrompt(np.array([5 + i, *rng.integers(5, 300, length - 1)]), 0) for i, length in enumerate(lengths)]


def write(engine, session, prompts, new_tokens, ends=()):
    """The tokens after each prompt; a row ends before one of `ends`, too."""
    decoding, rows = Decoding(max_new_tokens=new_tokens), {}
    writing = session._writing(decoding, None)
    writing._ends |= set(ends)
    engine.write(prompts, [0] * len(prompts), writing, decoding, lambda row: rows.update({row.index: row.tokens}))
    return [rows[i] for i in range(len(prompts))]


def test_prompts_with_nothing_in_common_are_read_some_at_a_time(generators, monkeypatch):
    monkeypatch.setattr(slots, "READ_TOKENS", 40)
    engine, session = FusedEngine(generators.artifact(FUSED), "cpu", 1, slots=16), generators.open(FUSED)
    prompts = unlike(9, 60, 1, 5, 30, 2, 5)
    found = write(engine, session, prompts, 3)
    assert found == [generators.reference(FUSED, one.ids.tolist(), max_new_tokens=3) for one in prompts]
    # 60 in two pieces, 30, four of up to 9, one; each gives a first token, and two steps of all rows the others.
    assert engine.steps == 2 + 1 + 1 + 1 + 2
    assert engine.tokens == 60 + 30 + 4 * 9 + 1 + 2 * 7


@pytest.mark.parametrize("count", [3, 10])
def test_rows_with_nothing_in_common_take_over_slots_of_others(generators, count):
    engine, session = FusedEngine(generators.artifact(FUSED), "cpu", 1, slots=count), generators.open(FUSED)
    prompts, ends = unlike(*np.random.default_rng(0).integers(1, 40, 30)), range(5, 330, 6)
    found = write(engine, session, prompts, 20, ends)
    assert found == [write(engine, session, [one], 20, ends)[0] for one in prompts]
    assert len(set(map(len, found))) > 4


@pytest.mark.parametrize("workers", [1, 2])
def test_two_threads_of_an_engine_write_what_one_writes(generators, workers):
    session = generators.open(FUSED)
    engine = FusedEngine(generators.artifact(FUSED), "cpu", 2, slots=3)
    engine.workers = workers
    asked = requests(20)
    for decoding in (Decoding(max_new_tokens=7), Decoding(method="beam", beams=2, max_new_tokens=7)):
        prompts = module.encode_requests(asked, session.artifact.manifest, session._tokenizer, 7)
        rows = {}
        engine.write(
            prompts,
            [0] * 20,
            session._writing(decoding, None),
            decoding,
            lambda row, rows=rows: rows.update({row.index: row}),
        )
        assert [tuple(rows[i].tokens) for i in range(20)] == tokens(session.generate(asked, decoding))


def test_runs_at_a_time_have_a_thread_each_unless_the_model_is_large(generators, monkeypatch):
    session = generators.open(FUSED)
    opened = []
    original = module._open
    monkeypatch.setattr(module, "_open", lambda *options: opened.append(options[-1]) or original(*options))
    for most, threads in ((module.TWICE_BYTES, [2, 1]), (0, [2])):
        monkeypatch.setattr(module, "TWICE_BYTES", most)
        engine = FusedEngine(generators.artifact(FUSED), "cpu", 2, slots=8)
        found = [write(engine, session, unlike(*range(2, 2 + count)), 4) for count in (1, 20, 20)]
        assert opened == threads
        assert found[1] == found[2]
        opened.clear()


def test_little_memory_means_fewer_slots_and_the_same_tokens(generators, monkeypatch):
    session, asked = generators.open(FUSED), requests(9)
    expected = tokens(session.generate(asked, Decoding(max_new_tokens=5)))
    monkeypatch.setattr(module, "CACHE_BYTES", 1)
    assert tokens(session.generate(asked, Decoding(max_new_tokens=5))) == expected


def test_several_threads_share_a_session(generators):
    session = generators.open(FUSED)
    groups = [requests(6, seed=seed) for seed in range(6)]
    expected = [tokens(session.generate(group, Decoding(max_new_tokens=6))) for group in groups]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda group: tokens(session.generate(group, Decoding(max_new_tokens=6))), groups * 2))
    assert found == expected * 2


def test_done_is_told_each_completion_with_its_place(generators):
    told = {}
    found = generators.open(FUSED).generate(requests(9), Decoding(max_new_tokens=4), done=told.__setitem__)
    assert [told[i] for i in range(9)] == found


def test_a_numeric_fault_is_an_error_of_its_row_alone(generators, monkeypatch):
    session, asked = generators.open(FUSED), requests(8)
    expected = session.generate(asked, Decoding(max_new_tokens=5))
    original = module.Writing.choose

    def choose(self, rows, logits):
        logits = logits.copy()
        for i, row in enumerate(rows):
            if row.index == 3 and len(row.tokens) == 2:
                logits[i, 7] = np.nan
        original(self, rows, logits)

    monkeypatch.setattr(module.Writing, "choose", choose)
    found = session.generate(asked, Decoding(max_new_tokens=5))
    assert (found[3].finish, found[3].text) == ("error", "")
    assert "finite" in found[3].error
    assert found[:3] + found[4:] == expected[:3] + expected[4:]


def test_no_requests_give_no_completions(generators):
    assert generators.open(FUSED).generate([], Decoding()) == []


def test_instructions_that_do_not_fit_are_an_error(generators):
    with pytest.raises(InputError, match="instructions"):
        generators.open(FUSED).generate([request("web", "qz" * 200)], Decoding(max_new_tokens=4))


def test_a_row_stops_at_the_models_length(generators):
    (one,) = generators.open(FUSED).generate([Request((Segment("x", data=True),))], Decoding(max_new_tokens=120))
    assert one.finish in ("length", "stop")
    assert len(one.tokens) <= 120


def test_a_model_that_writes_something_else_than_at_export_is_refused(generators, tmp_path):
    import dataclasses
    import json
    import shutil

    from llmrec_plugin.manifests import GOLDEN_PROMPTS

    artifact = generators.artifact(FUSED)
    folder = shutil.copytree(artifact.folder, tmp_path / "copy")
    content = json.loads((folder / GOLDEN_PROMPTS).read_text())
    content["prompts"][0]["tokens"][0] += 1
    (folder / GOLDEN_PROMPTS).write_text(json.dumps(content))
    with pytest.raises(ParityError, match=rf"'{FUSED}'.*golden prompt"):
        open_generator(dataclasses.replace(artifact, folder=folder), device="cpu", threads=1)
    (folder / GOLDEN_PROMPTS).write_text("[]")
    with pytest.raises(ArtifactCorruptError, match="golden prompts"):
        open_generator(dataclasses.replace(artifact, folder=folder), device="cpu", threads=1)
