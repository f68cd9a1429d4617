import pickle

from hypothesis import given, settings
from hypothesis import strategies as st

from pixelspace.data.packed import Captions, Strings

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FILE_NAMES = st.binary(max_size=20).map(lambda name: name.decode("utf-8", "surrogateescape"))


@settings(deadline=None)
@given(st.lists(TEXT | FILE_NAMES))
def test_packed_strings_are_the_strings(strings):
    packed = pickle.loads(pickle.dumps(Strings.of(strings)))
    assert len(packed) == len(strings) and [packed[i] for i in range(len(strings))] == strings


@settings(deadline=None)
@given(st.lists(st.lists(TEXT).map(tuple)))
def test_packed_captions_are_the_captions(texts):
    packed = Captions.of(texts)
    assert len(packed) == len(texts) and [packed[i] for i in range(len(texts))] == texts
    assert packed.counts().tolist() == [len(these) for these in texts]
