"""Groups of LoRA's matrices, and ranks by the importance of layers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from friction_kernels import AdamW, count_launches, lists, lora_param_groups


class Adapted(nn.Module):
    """A frozen layer with an adapter, named as peft names it."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(6, 6).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 6, bias=False)})
        self.lora_embedding_B = nn.ParameterDict({"default": nn.Parameter(torch.zeros(6, 2))})


def test_b_has_its_own_rate_and_all_that_trains_is_in_one_group():
    model = nn.ModuleDict({"one": Adapted(), "two": Adapted(), "classifier": nn.Linear(6, 3)})
    groups = lora_param_groups(model, lr=1e-3, ratio=4.0, weight_decay=0.5)
    assert [group["lr"] for group in groups] == [1e-3, 4e-3, 1e-3]
    assert all(group["weight_decay"] == 0.5 for group in groups)
    a, b, others = (set(group["params"]) for group in groups)
    assert a == {model[name].lora_A["default"].weight for name in ("one", "two")}
    assert b == {
        parameter
        for name in ("one", "two")
        for parameter in (
            model[name].lora_B["default"].weight,
            model[name].lora_embedding_B["default"],
        )
    }
    assert others == set(model["classifier"].parameters())
    opt = AdamW(groups)
    assert [group["lr"] for group in opt.param_groups] == [1e-3, 4e-3, 1e-3]


def test_rates_may_be_tensors_and_the_others_may_be_none():
    groups = lora_param_groups(Adapted(), lr=torch.tensor(1e-3))
    assert len(groups) == 2
    torch.testing.assert_close(groups[1]["lr"], torch.tensor(16e-3))


def test_a_model_without_adapters_is_refused():
    with pytest.raises(ValueError, match="no parameter named lora_A that requires a gradient"):
        lora_param_groups(nn.Linear(2, 2), lr=1e-3)
    with pytest.raises(ValueError, match="no parameter named lora_A"):
        lora_param_groups(Adapted().requires_grad_(False), lr=1e-3)
    only_a = Adapted()
    only_a.lora_B.requires_grad_(False)
    only_a.lora_embedding_B.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter named lora_B"):
        lora_param_groups(only_a, lr=1e-3)
    with pytest.raises(ValueError, match="ratio must be a finite number above 0, got 0"):
        lora_param_groups(Adapted(), lr=1e-3, ratio=0)


@pytest.mark.parametrize("temperature", [0.5, torch.tensor(2.0)])
def test_importance_is_the_softmax_of_norms(temperature):
    gradients = [torch.randn(3, 4), torch.randn(5), None, torch.randn(4, 4), None]
    with count_launches() as launches:
        labels, found = lists.layer_importance(gradients, ["b", "a", "b", "b", "c"], temperature)
    assert launches.total == 1
    assert labels == ["b", "a", "c"] and found.shape == (3,)
    both = torch.cat([gradients[0].flatten(), gradients[3].flatten()])
    norms = torch.stack([both.norm(), gradients[1].norm(), torch.tensor(0.0)]).double()
    torch.testing.assert_close(found, torch.softmax(norms / temperature, 0), rtol=1e-6, atol=0)


@given(
    st.lists(st.floats(0, 1e300), min_size=1, max_size=30).filter(any),
    st.integers(0, 1000),
    st.integers(0, 5),
    st.booleans(),
)
def test_ranks_are_the_budget_in_proportion(importance, more, minimum, as_tensor):
    budget = minimum * len(importance) + more
    given_numbers = torch.tensor(importance, dtype=torch.float64) if as_tensor else importance
    ranks = lists.allocate_ranks(given_numbers, budget, minimum)
    assert sum(ranks) == budget and min(ranks) >= minimum
    largest = max(importance)
    total = math.fsum(number / largest for number in importance)
    for rank, number in zip(ranks, importance, strict=True):
        assert abs(rank - minimum - more * (number / largest / total)) < 1 + 1e-9
    by_importance = [rank for _, rank in sorted(zip(importance, ranks, strict=True))]
    assert by_importance == sorted(by_importance)  # none that is more important gets less


def test_equal_remainders_go_in_order():
    assert lists.allocate_ranks([1.0, 1.0, 1.0], 8) == [3, 3, 2]
    assert lists.allocate_ranks([0.0, 3.0, 1.0], 7) == [1, 4, 2]
    assert lists.allocate_ranks([0.5, 0.5], 2) == [1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lists.allocate_ranks([1.0, 1.0], 1), "budget 1 is less than 1 for each of 2"),
        (lambda: lists.allocate_ranks([1.0], 1, minimum=-1), "minimum must be at least 0"),
        (lambda: lists.allocate_ranks([1.0, -1.0], 4), "importance must be finite numbers"),
        (lambda: lists.allocate_ranks([math.nan, 1.0], 4), "importance must be finite numbers"),
        (lambda: lists.allocate_ranks([0.0, 0.0], 4), "one of them positive"),
        (lambda: lists.layer_importance([], []), "there is no gradient"),
        (lambda: lists.layer_importance([torch.ones(2)], ["a", "b"]), "a label for each of 1"),
        (
            lambda: lists.layer_importance([torch.ones(2)], ["a"], 0.0),
            "temperature must be a finite number above 0",
        ),
    ],
)
def test_what_cannot_be_used_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
