"""Arguments that mean nothing: one line that says which, what was expected, and where to look."""

import pytest

from tests.cli.conftest import refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("smaple runs", "no command 'smaple'; did you mean 'sample'? known here: demo, diagnose, "),
        (
            "train hdit-demo --epochs 3",
            "pixelspace train: no option '--epochs'; known here: --accept-changes, --data, ",
        ),
        ("export a b --az onnx", "no option '--az'; did you mean '--as'? known here: --as, --dtype, --weights; see "),
        ("prepare a b", "pixelspace prepare: 'b' is one argument too many; see `pixelspace prepare --help`"),
        ("sample runs -n four", "pixelspace sample: -n/--n: expected a whole number, found 'four'; see "),
        ("sample runs --size a b", "pixelspace sample: --size: expected a whole number, found 'a', 'b'; see "),
        ("sample runs --fps much", "pixelspace sample: --fps: expected a number, found 'much'; see "),
        ("sample runs --device", "pixelspace sample: Missing value for argument '--device'. Expected 1 values; see "),
        ("export a b --as tflite", "invalid choice 'tflite' for argument '--as'. Expected one of ('model', 'diffus"),
        ("train", "pixelspace train: give a recipe's name, a run's folder, a recipe.json, or file.py:function; see "),
        ("push a b", "pixelspace push: --licence is missing: Under which it may be used, as the hub has it: "),
        ("--nix", "pixelspace: Unrecognized options: --nix; see `pixelspace --help`"),
        ("train hdti-demo", "file.py:function); did you mean 'hdit-demo'?"),
    ],
)
def test_what_is_wrong_with_arguments_is_one_line(cli, given, said):
    refused(cli(*given.split()), 2, said)


def test_without_arguments_help_is_shown(cli):
    code, out, err = cli()
    assert (code, err) == (0, "") and "usage: pixelspace" in out and "diagnose" in out
