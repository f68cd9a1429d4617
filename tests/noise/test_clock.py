import pytest
import torch

from pixelspace.config import from_data, to_data
from pixelspace.noise.clock import LogSigma, TableIndex
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.tables import LinearBeta, SquaredCosine
from pixelspace.recipes.values import VALUES

TABLES = [SquaredCosine(), SquaredCosine(8), LinearBeta(32)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("table", TABLES, ids=repr)
def test_an_entry_of_a_table_is_told_by_its_original_number(table, dtype):
    told = TableIndex(table)(table.sigmas[1:].to(dtype))
    assert told.dtype == dtype and torch.equal(told, torch.arange(table.steps, dtype=dtype))


@pytest.mark.parametrize("table", TABLES, ids=repr)
def test_between_two_entries_the_time_is_even_in_ln_sigma(table):
    low, high = table.sigmas[1:-1].log(), table.sigmas[2:].log()
    for share in (0.25, 0.5, 0.9):
        told = TableIndex(table)((low + share * (high - low)).exp())
        torch.testing.assert_close(told, torch.arange(table.steps - 1, dtype=torch.float64) + share)


def test_levels_beyond_a_table_are_told_as_its_ends():
    told = TableIndex(SquaredCosine())(torch.tensor([1e-6, 1e9]))
    assert torch.equal(told, torch.tensor([0.0, 999.0]))


def test_a_process_tells_its_network_what_its_clock_says():
    x, table = torch.randn(4, 3, 2, 2), SquaredCosine()
    sigma = table.sigmas[[1, 10, 500, 1000]].float()
    assert torch.equal(
        Process(VPV(), clock=TableIndex(table)).inputs(x, sigma)[1], torch.tensor([0.0, 9.0, 499.0, 999.0])
    )
    shifted = Process(VPV(), shift=4.0, clock=TableIndex(table))
    assert torch.equal(shifted.inputs(x, 4 * sigma)[1], torch.tensor([0.0, 9.0, 499.0, 999.0]))
    assert torch.equal(Process(VPV()).inputs(x, sigma)[1], sigma.log() / 4)


@pytest.mark.parametrize("clock", [LogSigma(), TableIndex(LinearBeta(32, rescale=2.0))], ids=repr)
def test_a_process_goes_to_json_and_back_with_its_clock(clock):
    process = Process(VPV(), clock=clock)
    assert from_data(to_data(process), VALUES) == process


def test_a_process_written_before_there_were_clocks_is_read_as_it_was():
    data = to_data(Process(VPV(), shift=2.0))
    del data["clock"]
    assert from_data(data, VALUES) == Process(VPV(), shift=2.0)
