import pytest

from sllmd.api.openai import CompletionRequest
from sllmd.api.sampling import completion_sampling
from sllmd.store.builtin import make_builtin
from sllmd.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_builtin("tiny", directory)
    return Tokenizer.load(directory)


@pytest.mark.parametrize(("asked", "top_k"), [(-1, 0), (0, 0), (7, 7), (2**70, "all")])
def test_more_than_all_tokens_are_all(tokenizer, asked, top_k):
    """A worker is told of no number that its messages cannot hold."""
    request = CompletionRequest(model="m", top_k=asked)
    sampling = completion_sampling(request, tokenizer, seed=1, max_tokens=1)
    assert sampling.top_k == (tokenizer.vocabulary_size if top_k == "all" else top_k)
