"""FrictionAdamW: one word makes it one of four classes, in everything that can be seen of it."""

import copy
import inspect
import pickle

import pytest
import torch
from optimizer_cases import (
    assert_same_bits,
    assert_same_states,
    both_backends,
    copies,
    give_gradients,
    make_params,
    run,
)

from friction_kernels import (
    AdamW,
    DiffGradW,
    FrictionAdamW,
    SigSignAdamW,
    TanhSignAdamW,
    friction_stats,
    release_gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NORMALIZED, STRONG = {"friction_input": "normalized"}, {"beta3": 2.0}
# The class that each word stands for, and the options that the class does not have by default.
NAMED = {
    "tanh": (TanhSignAdamW, NORMALIZED | STRONG),
    "sigmoid": (SigSignAdamW, NORMALIZED | STRONG),
    "diff": (DiffGradW, STRONG),
    None: (AdamW, {}),
}
every_word = pytest.mark.parametrize("word", NAMED)
KEPT = {
    "plain": (torch.float32, {}),
    "few bits": (torch.bfloat16, {"rounding": "stochastic", "state_dtype": "8bit"}),
    "options": (torch.float32, {"lr": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.5}),
}


def twins(word, backend="native", dtype=torch.float32, **options):
    """The one and the named one, with parameters of their own."""
    cls, own = NAMED[word]
    ours, theirs = make_params(dtype=dtype), make_params(dtype=dtype)
    one = FrictionAdamW(ours, friction=word, backend=backend, **STRONG, **options)
    return ours, one, theirs, cls(theirs, backend=backend, **own, **options)


def assert_alike(ours, one, theirs, named):
    assert_same_bits(ours, theirs)
    assert_same_states(one, ours, named, theirs)


@both_backends
@pytest.mark.parametrize("kept", KEPT)
@every_word
def test_a_word_gives_the_named_classes_bits(word, kept, backend):
    dtype, options = KEPT[kept]
    ours, one, theirs, named = twins(word, backend, dtype, **options)
    run(one, ours, range(4))
    run(named, theirs, range(4))
    assert_alike(ours, one, theirs, named)


def test_its_default_is_tanh_of_the_normalized_input_at_adamws_rate_and_decay():
    ours, theirs = make_params(), make_params()
    opt, named = FrictionAdamW(ours), TanhSignAdamW(theirs, **NORMALIZED)
    assert opt.defaults == named.defaults
    adamw = torch.optim.AdamW(make_params()).defaults
    assert all(opt.defaults[key] == adamw[key] for key in ("lr", "betas", "eps", "weight_decay"))
    run(opt, ours, range(3))
    run(named, theirs, range(3))
    assert_alike(ours, opt, theirs, named)


def test_positional_arguments_are_adamws_without_amsgrad():
    parameters = inspect.signature(FrictionAdamW).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == ["params", "lr", "betas", "eps", "weight_decay"]


@pytest.mark.parametrize("word", ["sign", "Tanh", "none", True, 0])
def test_a_wrong_word_is_refused_by_name(word):
    says = "friction must be one of 'sigmoid', 'tanh', 'diff', None, got "
    with pytest.raises(ValueError, match=says):
        FrictionAdamW(make_params(), friction=word)


@pytest.mark.parametrize(
    ("option", "value"), [("beta3", -1.0), ("friction_input", "sum"), ("take_gradients", "yes")]
)
@every_word
def test_options_of_friction_are_checked_without_it_too(word, option, value):
    with pytest.raises(ValueError, match=f"^{option} must be "):
        FrictionAdamW(make_params(), friction=word, **{option: value})


@every_word
def test_a_group_cannot_have_another_friction(word):
    other = "diff" if word == "tanh" else "tanh"
    with pytest.raises(TypeError, match=r"group 0 has friction=.*, which FrictionAdamW does not"):
        FrictionAdamW([{"params": make_params(), "friction": other}], friction=word)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
@every_word
def test_copies_keep_the_word(word, duplicate):
    ours, one, theirs, named = twins(word)
    run(one, ours, range(2))
    run(named, theirs, range(2))
    ours, one = duplicate((ours, one))
    run(one, ours, range(2, 4))
    run(named, theirs, range(2, 4))
    assert_alike(ours, one, theirs, named)


@every_word
def test_a_state_dict_is_the_named_classs(word):
    ours, one, theirs, named = twins(word)
    run(one, ours, range(2))
    run(named, theirs, range(2))
    saved, of_named = copy.deepcopy((one.state_dict(), named.state_dict()))
    for key in of_named["param_groups"][0]:  # AdamW has no beta3
        assert saved["param_groups"][0][key] == of_named["param_groups"][0][key]
    back, forth = copies(ours), copies(theirs)
    one_again = FrictionAdamW(back, friction=word)
    one_again.load_state_dict(of_named)
    named_again = NAMED[word][0](forth)
    named_again.load_state_dict(saved)
    run([one_again], back, [2])
    run([named_again], forth, [2])
    run(one, ours, [2])
    assert_alike(ours, one, back, one_again)
    assert_alike(ours, one, forth, named_again)


@pytest.mark.parametrize(("saved", "word"), [("tanh", "sigmoid"), ("sigmoid", "diff")])
def test_another_frictions_state_is_refused_by_name(saved, word):
    ours = make_params()
    opt = FrictionAdamW(ours, friction=saved)
    run(opt, ours, range(2))
    says = f"not one of FrictionAdamW: its group 0 has friction='{saved}' and this class '{word}'"
    with pytest.raises(ValueError, match=says):
        FrictionAdamW(make_params(), friction=word).load_state_dict(opt.state_dict())


@both_backends
@every_word
def test_statistics_are_of_the_friction_or_refused(word, backend):
    ours, one, theirs, named = twins(word, backend)
    run(one, ours, range(2))
    run(named, theirs, range(2))
    give_gradients(ours, 2)
    give_gradients(theirs, 2)
    if word is None:
        with pytest.raises(TypeError, match="FrictionAdamW has no friction"):
            friction_stats(one)
    else:
        assert friction_stats(one) == friction_stats(named)


@every_word
def test_gradients_are_released(word):
    ours, one, theirs, named = twins(word)
    with_release = release_gradients(ours, one)
    for step in range(2):
        give_gradients(theirs, step)
        grads = [param.grad for param in theirs]
        torch.autograd.backward([param * 1 for param in ours], grads)
        named.step()
    with_release.remove()
    assert_alike(ours, one, theirs, named)
