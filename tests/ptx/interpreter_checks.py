"""Run by tests/ptx/run.py: where a barrier, a sync of a warp or a fence is taken out of the PTX, that is
noticed: a launch fails, or other bits come out. So are instructions that the interpreter does not know."""

import ctypes
from dataclasses import replace
from functools import partial

import pytest
from cases import FORMS, LAYOUTS, SIZES, digest_of, drive, memory, norm, of_shapes, products


def set_sync(number: int, present: bool) -> str:
    """Takes it out or puts it back; what describes it."""
    text = ctypes.create_string_buffer(4096)
    memory.interpreter.ptx_set_sync(number, present, text, len(text))
    return text.value.decode()


def one_step() -> list[bytes]:
    """Of two groups in turn, of rows that need one thread, a warp or a block."""
    shapes = [(300, 3), (7, 700), (40, 64), (2, 5000), (33, 1)]
    forms = [
        replace(form, group=i % 2)
        for layout in ("contiguous", "offset")
        for i, form in enumerate(of_shapes(FORMS["8 bits"], shapes, layout))
    ]
    groups = ({"lr": 0.01}, {"lr": 0.02, "delta": 100.0})
    return drive("friction_adamp", forms, *groups, on_device=True)


def one_norm() -> list[bytes]:
    return norm(
        [one for layout in LAYOUTS[:3] for one in of_shapes(FORMS["8 bits"], SIZES, layout)]
    )


WHAT_RUNS = {
    "update_kernelINS0_6LaunchINS_13FrictionAdamPEEENS0_15Quantized": one_step,
    "statistic_kernelINS0_6LaunchINS_13FrictionAdamPEEENS0_15Quantized": one_step,
    "reduce_kernelINS0_6LaunchINS_13FrictionAdamPEEENS0_15Quantized": one_step,
    "decide_kernelINS0_6LaunchINS_13FrictionAdamPEEEf": one_step,
    "gram_kernelILi1E": one_norm,
    "gram_kernelILi4E": partial(products, 4, 1.0, 5),
}
SYNCS = [set_sync(number, True) for number in range(memory.interpreter.ptx_syncs())]


@pytest.mark.parametrize("kernel", WHAT_RUNS)
def test_a_missing_sync_is_noticed(kernel):
    """Every fence and every sync of a warp; of the block's barriers, those that are not superfluous."""
    run = WHAT_RUNS[kernel]
    expected = digest_of(run)
    numbers = [number for number, sync in enumerate(SYNCS) if kernel in sync]
    unnoticed = []
    for number in numbers:
        set_sync(number, False)
        try:
            if digest_of(run) == expected:
                unnoticed.append(SYNCS[number])
        except RuntimeError as error:
            assert "race" in str(error) or "fence" in str(error) or "outside" in str(error)
        finally:
            set_sync(number, True)
    assert digest_of(run) == expected
    assert 2 * len(unnoticed) < len(numbers)
    assert all("bar.sync" in sync for sync in unnoticed)


MODULE = """
.visible .entry kernel(
	.param .align 8 .b8 argument[16]
)
.maxntid 256, 1, 1
{
	.reg .f32 	%f<3>;
	.loc	1 7 0
	INSTRUCTION;
	ret;
}
	.file	1 "/folder/source.cu"
"""


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("add.rn.f32 %f1, %f2, 0f3F800000", ""),
        ("fma.rn.f32 %f1, %f2, %f2, %f2", "unknown instruction"),
        ("add.rn.f32 %f1, %f2, %f3", "unknown operand %f3"),
    ],
)
def test_what_is_not_known_is_named(instruction, fault):
    fault_of = memory.interpreter.ptx_fault_of
    fault_of.restype = ctypes.c_char_p
    place = f": kernel, source.cu:7, `{instruction}`"
    found = fault_of(MODULE.replace("INSTRUCTION", instruction).encode()).decode()
    assert found == (fault + place if fault else "")
