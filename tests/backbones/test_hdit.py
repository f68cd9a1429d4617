import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood, ShiftedWindow
from pixelspace.errors import UserError
from tests.backbones.cases import HDIT, conditions
from tests.backbones.test_backbones import awake

LOCAL = HDiTConfig(
    (Level(16, 1, Neighborhood(8, kernel=3)),), patch=(1, 1), mapping_width=16, mapping_depth=1, num_classes=4
)


def test_labels_as_rows_are_mixtures_and_zero_rows_are_none():
    network = HDIT.build().double()
    torch.nn.init.normal_(network.patch_out.proj.weight)
    for name, parameter in network.named_parameters():
        if "norm.linear" in name:
            torch.nn.init.normal_(parameter)
    x, c_noise = torch.randn(3, 3, 16, 32, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    network.eval()
    cond = conditions(HDIT, 3, torch.float64)

    def with_label(label):
        return network(x, c_noise, {**cond, "label": label})

    rows = torch.eye(4, dtype=torch.float64)[torch.tensor([0, 2, 3])]
    torch.testing.assert_close(with_label(rows), with_label(torch.tensor([0, 2, 3])))
    none = with_label(torch.tensor([-1, -1, -1]))
    torch.testing.assert_close(with_label(torch.zeros(3, 4, dtype=torch.float64)), none)
    torch.testing.assert_close(with_label(torch.tensor([4, 4, 4])), none)


def test_a_missing_condition_is_named():
    network = HDIT.build()
    with pytest.raises(UserError, match=r"needs cond\['mapping'\]; found \['label'\]"):
        network(torch.randn(1, 3, 16, 32), torch.zeros(1), {"label": torch.zeros(1, dtype=torch.int64)})


def test_cost_grows_linearly_with_pixels():
    """The scaling table of the specification: ablation E with one more 384-wide level per doubling."""
    expected = {128: 31.37, 256: 64.72, 512: 198.10, 1024: 731.6, 2048: 2865.7}
    for i, (size, gmac) in enumerate(expected.items()):
        outer = (Level(384, 2, Neighborhood()),) * (i + 1)
        config = HDiTConfig(
            levels=(*outer, Level(768, 11, Global())), mapping_width=768, mapping_depth=1, num_classes=1000
        )
        assert config.macs(size, size) / 1e9 == pytest.approx(gmac, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (
            HDiTConfig(levels=(Level(64, 1, Neighborhood()), Level(64, 1, Global()))),
            60,
            "multiple of 8, at least 32; .* 56 and 64",
        ),
        (HDiTConfig(levels=(Level(64, 1, Neighborhood()), Level(64, 1, Global()))), 24, "at least 32; .* 32 and 40"),
        (HDiTConfig(levels=(Level(64, 1, ShiftedWindow(8)), Level(64, 1, Global()))), 48, "multiple of 32.* 32 and 64"),
    ],
)
def test_valid_sizes_follow_from_levels_kernels_and_windows(config, size, message):
    with pytest.raises(UserError, match=message):
        config.check_size(size, size)
    config.check_size(64, 96)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Level(100, 1, Global()), "width 100 is not a multiple of head_dim 64; .* 64 and 128"),
        (lambda: Level(64, 1, Global(12)), "multiple of 8"),
        (lambda: Neighborhood(kernel=4), "kernel must be odd"),
        (lambda: Level(64, 1, Global(), dropout=1.0), "dropout must be in"),
        (lambda: HDiTConfig(levels=()), "levels is empty"),
        (lambda: HDiTConfig(levels=(Level(64, 1, Global()),), mapping_width=15), "even"),
    ],
)
def test_senseless_networks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_and_stages_need_no_graph_but_one_a_grid():
    graphs = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    for _ in range(2):  # the later stage has a network of its own
        network = awake(LOCAL).train()
        compiled = torch.compile(network, backend=graphs, fullgraph=True, dynamic=False)
        for step, side in enumerate((4, 20, 4, 20, 20)):
            x, c_noise = torch.randn(2, 3, side, side, dtype=torch.float64), torch.full((2,), step, dtype=torch.float64)
            cond = {"label": torch.tensor([0, step % 3])}
            out = compiled(x, c_noise, cond)
            torch.testing.assert_close(out, network(x, c_noise, cond))
            out.square().sum().backward()
    assert graphs.frame_count == 2
