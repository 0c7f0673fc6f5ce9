"""A CUDA launch walks every element exactly once: its own functions, run on the host over all blocks and
threads."""

import ctypes

import numpy as np
import pytest
import torch
from host_launch import DTYPE_CONFIGS, describe, pointer
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_driver import BLOCK, CHUNK, quantized_bytes

pytestmark = pytest.mark.deep

EXAMPLES = 200  # the host runs every thread of a launch, one after another
GUARD = 64  # elements around each tensor that nobody may touch

sizes = st.one_of(
    st.sampled_from([0, 1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 509, 4093, 10007]),
    st.integers(0, 3 * CHUNK),
)


def walk(host, numels, blocks, stored):
    numels = np.array(numels, dtype=np.int64)
    chunks = int(np.sum(-(-numels // CHUNK)))
    out = [np.full(chunks, -1, dtype=np.int64) for _ in range(4)]
    host.walk(
        *(pointer(numels), ctypes.c_int64(len(numels)), ctypes.c_int64(blocks)),
        ctypes.c_bool(stored),
        *map(pointer, out),
    )
    return out


def assert_covers(numels, blocks, parts):
    """The parts are every tensor's elements, each once, and block b has chunks b, b + blocks, ..."""
    tensor, begin, elements, block = parts
    assert np.array_equal(block, np.arange(len(block)) % blocks)
    at = 0
    for index, numel in enumerate(numels):
        chunks = -(-numel // CHUNK)
        mine = slice(at, at + chunks)
        assert np.all(tensor[mine] == index)
        assert np.array_equal(begin[mine], np.arange(chunks) * CHUNK)
        assert np.array_equal(
            begin[mine] + elements[mine], np.append(begin[mine][1:], numel)[:chunks]
        )
        at += chunks
    assert at == len(tensor)


@settings(max_examples=EXAMPLES)
@given(st.lists(sizes, min_size=1, max_size=60), st.integers(1, 3000))
def test_parts_cover_every_tensor_once(host, numels, blocks):
    in_parameters = walk(host, numels, blocks, stored=False)
    assert_covers(numels, blocks, in_parameters)
    for a, b in zip(in_parameters, walk(host, numels, blocks, stored=True), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("count", [1, 600, 700, 5000])
@settings(max_examples=5)
@given(data=st.data())
def test_parts_cover_thousands_of_tensors(host, count, data):
    numels = data.draw(st.lists(sizes, min_size=8, max_size=8)) * (count // 8) + [5] * (count % 8)
    assert_covers(numels, 264, walk(host, numels, 264, stored=False))


def test_parts_of_more_elements_than_32_bits_number(host):
    numels = [7, 2**31 + 5, 0, 3]
    assert_covers(numels, 264, walk(host, numels, 264, stored=False))


def test_launch_fits_into_a_kernels_parameters(host):
    assert host.launch_bytes_of_friction_adam() <= 32764
    assert host.capacity_of_friction_adam() >= 600
    assert host.capacity_of_sgd() > host.capacity_of_friction_adam()


def guarded(numel, dtype, offset, gap):
    """Zeros between guards of 7: the whole, and the tensor `offset` elements off alignment."""
    whole = torch.full((GUARD + offset + numel * gap + GUARD,), 7.0, dtype=dtype)
    inner = whole[GUARD + offset :][: numel * gap : gap]
    inner.zero_()
    return whole, inner


@settings(max_examples=EXAMPLES)
@given(
    cases=st.lists(
        st.tuples(sizes, st.sampled_from([0, 0, 1, 3, 5]), st.sampled_from([1, 1, 1, 2])),
        min_size=1,
        max_size=6,
    ),
    storage=st.sampled_from(
        [
            ("float32", torch.float32),
            ("bfloat16", torch.bfloat16),
            ("mixed", torch.float16),
            ("mixed", torch.bfloat16),
            ("float64", torch.float64),
            ("quantized", torch.bfloat16),
        ]
    ),
    blocks=st.integers(1, 9),
    stored=st.booleans(),
)
def test_threads_touch_every_element_once_and_no_other(host, cases, storage, blocks, stored):
    kind, dtype = storage
    memories = [guarded(numel, dtype, offset, gap) for numel, offset, gap in cases]
    given_tensors, _alive = describe([[inner] for _, inner in memories])
    host.count_visits(
        *(given_tensors, ctypes.c_int64(len(cases)), ctypes.c_int64(blocks)),
        *(DTYPE_CONFIGS[kind], ctypes.c_bool(stored)),
    )
    for whole, inner in memories:
        assert torch.equal(inner, torch.ones_like(inner))
        inner.fill_(7.0)
        assert torch.equal(whole, torch.full_like(whole, 7.0))


def quantized_state(numel):
    """Zeros in 8 bits between guards of 7: the whole, and the state, at 16 bytes' alignment."""
    whole = torch.full((2 * GUARD + quantized_bytes(numel),), 7, dtype=torch.uint8)
    state = whole[GUARD - whole.data_ptr() % 16 :][: quantized_bytes(numel)]
    state.zero_()
    return whole, state


@settings(max_examples=EXAMPLES)
@given(
    cases=st.lists(
        st.tuples(
            st.one_of(sizes, st.sampled_from([255, 256, 257])),
            st.sampled_from([0, 0, 0, 1, 3]),
            st.sampled_from([1, 1, 1, 2]),
        ),
        min_size=1,
        max_size=6,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    kinds=st.sampled_from(
        [
            (torch.uint8, torch.uint8),
            (torch.uint8, torch.bfloat16),
            (torch.float32, torch.uint8),
            (torch.float16, torch.float32),
        ]
    ),
    blocks=st.integers(1, 9),
    stored=st.booleans(),
)
def test_warps_pack_every_code_and_scale_once_and_no_other(
    host, cases, dtype, kinds, blocks, stored
):
    """States one lower and one higher: every scale 1, every code the largest, padding as it was."""
    lists, wholes = [], []
    for numel, offset, gap in cases:
        made = [guarded(numel, dtype, offset, gap) for _ in range(2)]
        for kind in kinds:
            quantized = kind == torch.uint8
            made.append(quantized_state(numel) if quantized else guarded(numel, kind, offset, gap))
        wholes.append([whole for whole, _ in made])
        lists.append([inner for _, inner in made])
    given_tensors, _alive = describe(lists)
    host.count_visits_of_states(
        *(given_tensors, ctypes.c_int64(len(cases)), ctypes.c_int64(blocks)),
        *(ctypes.c_bool(kinds == (torch.uint8,) * 2), ctypes.c_bool(stored)),
    )
    for (numel, _, _), inners, memory in zip(cases, lists, wholes, strict=True):
        for inner, expected in zip(inners, (0, 0, -1, 1), strict=True):
            if inner.dtype != torch.uint8:
                assert torch.equal(inner, torch.full_like(inner, expected))
                inner.fill_(7)
                continue
            blocks_of = -(-numel // BLOCK)
            scales, codes = inner[: 4 * blocks_of], inner[quantized_bytes(numel) - numel :]
            assert torch.equal(scales.view(torch.float32), torch.ones(blocks_of))
            assert (codes == 255).all()  # the largest; of a signed list with its sign, -1
            assert not inner[4 * blocks_of : quantized_bytes(numel) - numel].any()
            inner.fill_(7)
        for whole in memory:
            assert torch.equal(whole, torch.full_like(whole, 7))


def halving_sum(values):
    values = list(values)
    while len(values) > 1:
        half = len(values) // 2
        values = [a + b for a, b in zip(values[:half], values[half:], strict=True)]
    return values[0]


@settings(max_examples=EXAMPLES)
@given(st.sampled_from([1, 32, 256, 1024]), st.integers(0, 2**32 - 1))
def test_teams_add_in_one_order(host, team, seed):
    """A warp's values by halving, then the warps' sums: any other order would round otherwise."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(team) * 10.0 ** random.integers(-12, 12, team)
    warps = [halving_sum(values[i : i + 32]) for i in range(0, team, 32)]
    assert host.team_sum(pointer(values.copy()), team) == halving_sum(warps)
