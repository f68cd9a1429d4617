"""Prompts for exact numbers, in the layouts of GeckoNum and Gecko."""

import pytest

from pixelspace.errors import DataError
from pixelspace.evaluation.questions.prompts import (
    EXACT,
    CountQuestion,
    parse_entities,
    parse_list,
    read_count_prompts,
)

GECKONUM = """index,prompt,has_numeral,is_frequent,entities,prompt_type,dataset_id
0,1 otter.,0,1,otter:1,numeric_simple,geckonum_00000
1,"Two red flies, 3 leaves and one fish.",1,-1,"red fly:2, leaf:3, fish:1",3-additive,geckonum_00001
2,Some otters and some fish. There are fewer otters than fish.,0,-1,"otter:fewer,fish:X",approx-2-entity,geckonum_00002
3,An otter broken into thirds.,0,-1,otter:thirds,fractional-simple,geckonum_00003
4,A kite of two parts.,1,-1,kite:1/2red+1/2blue,fractional-complex,geckonum_00004
5,There is 1 kite of two parts.,1,-1,kite:1,part-whole,geckonum_00005
6,Another otter broken into thirds.,0,-1,otter:thirds,fractional-simple,geckonum_00006
"""
GECKO = """,dataset_id,prompt,prompt_type,prompt_id,max_disagreement_less_0.5
0,ne/artwork:artwork,A statue in 3 fields.,Gecko(S),0,True
1,att/count:simple_numeric,one otter.,Gecko(S),1,True
2,att/count:additive_3,"five otters, 2 flies and one fish.",Gecko(S),2,True
3,att/count:additive_2,4 otters and 4 otters.,Gecko(S),3,True
4,att/count:quant_and_neg,some otters and some flies. There are more otters than flies.,Gecko(S),4,True
5,countbench_41,set of seven green otters,Gecko(R),5,True
"""


@pytest.fixture
def read(tmp_path):
    def written(text):
        (tmp_path / "prompts.csv").write_text(text)
        return read_count_prompts(tmp_path / "prompts.csv")

    return written


def test_geckonum_is_read_by_its_entities(read):
    prompts = read(GECKONUM)
    assert prompts.name == "GeckoNum"
    assert [(item.id, item.type) for item in prompts.items] == [
        ("geckonum_00000", "numeric_simple"),
        ("geckonum_00001", "3-additive"),
    ]
    assert prompts.items[1].questions == (
        CountQuestion("1", "How many red flies are in the image?", "red fly", 2),
        CountQuestion("2", "How many leaves are in the image?", "leaf", 3),
        CountQuestion("3", "How many fish are in the image?", "fish", 1),
    )
    assert dict(prompts.excluded) == {
        **{"approx-2-entity": 1, "fractional-simple": 2},
        **{"fractional-complex": 1, "part-whole": 1},
    }


def test_gecko_is_read_by_its_lists(read):
    prompts = read(GECKO)
    assert prompts.name == "Gecko"
    assert [(item.id, item.type) for item in prompts.items] == [
        ("gecko_1", "att/count:simple_numeric"),
        ("gecko_2", "att/count:additive_3"),
    ]
    assert prompts.items[0].questions == (CountQuestion("1", "How many otters are in the image?", "otter", 1),)
    assert [(q.text, q.count) for q in prompts.items[1].questions] == [
        ("How many otters are in the image?", 5),
        ("How many flies are in the image?", 2),
        ("How many fish are in the image?", 1),
    ]
    assert dict(prompts.excluded) == {
        **{"att/count:additive_2, a noun named twice": 1, "att/count:quant_and_neg": 1},
        **{"countbench": 1, "not about numbers": 1},
    }


def test_entities_added_to_gecko_bring_its_free_prompts_in(read):
    lines = GECKO.splitlines()
    text = "\n".join([lines[0] + ",entities", *(line + "," for line in lines[1:-1]), lines[-1] + ",green otter:7", ""])
    prompts = read(text)
    assert prompts.items[-1].questions[0] == CountQuestion(
        "1", "How many green otters are in the image?", "green otter", 7
    )
    assert "countbench" not in dict(prompts.excluded)


def test_entities_are_parsed_as_they_stand(golden_json):
    for case in golden_json("metrics/counting")["parse_cases"]:
        assert [list(pair) for pair in parse_entities(case["entities"])] == case["parsed"]


def test_exact_types_are_those_of_the_benchmark(golden_json):
    described = golden_json("metrics/counting")
    assert set(EXACT) == set(described["prompt_types"]["exact"])
    assert sum(described["counts"][kind] for kind in EXACT) == 1260


def test_lists_are_parsed_with_words_and_digits():
    assert parse_list("Ten cinnamon sticks, 4 parsnips and one dog.") == (
        *(("cinnamon sticks", "10"), ("parsnips", "4"), ("dog", "1")),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GECKONUM.replace("otter:1,", "otter,"), "prompts.csv:2: expected noun:number, found 'otter'"),
        (GECKONUM.replace("otter:1,", "otter:some,"), "prompts.csv:2: expected a number of 'otter' from 0 to 10"),
        (GECKONUM.replace("otter:1,", "otter:11,"), "prompts.csv:2: expected a number of 'otter' from 0 to 10"),
        (GECKONUM.replace("00001\n", "00000\n"), "prompts.csv:3: the id geckonum_00000 stands twice"),
        (GECKO.replace("one otter.", "an otter."), "prompts.csv:3: expected a number and a noun, found 'an otter'"),
        (
            "prompt,prompt_type,dataset_id\n",
            "expected prompts.csv of github.com/google-deepmind/geckonum_benchmark_t2i",
        ),
        ("\n".join(GECKO.splitlines()[:2]) + "\n", "no prompts for exact numbers"),
    ],
)
def test_faulty_prompts_are_named(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text)


def test_an_absent_file_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(DataError, match="gecko_benchmark_t2i"):
        read_count_prompts(tmp_path / "prompts.csv")
